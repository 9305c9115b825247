"""``python -m templates audit``: dispatches to `templates.audit`."""

from jsonargparse import auto_cli

from templates.audit import audit

if __name__ == "__main__":
    try:
        raise SystemExit(auto_cli({"audit": audit}, as_positional=False, prog="python -m templates"))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
