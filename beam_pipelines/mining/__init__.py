"""Reading-comprehension tasks mined from raw text, without a model and without Beam.

`bank` holds wordings and connectives, `prose` finds sentences, `findings` what the text says about itself, `tasks`
chooses and words the tasks of a document, `keywords` selects the words of a domain.

Source: Cheng et al. 2023 (arXiv 2309.09530).
"""
