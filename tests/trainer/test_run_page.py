"""The page, from the logs of runs to what a real browser makes of it."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from tests.shard_fixtures import write_example_shards
from trainer.pretrain import main as pretrain
from trainer.run_page import main as make_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome")

HOSTILE = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> '{{ 7 * 7 }}'"
)


def write_run(folder, *, seed=0, num_steps=300, config=None, component="raw"):
    """The files of a run that is still going on, with a spike that was skipped."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"command": "pretrain", "config": {}, "inputs": {"shards": "f" * 64, "model": HOSTILE}})
    )
    (folder / "resolved_config.json").write_text(
        json.dumps(config or {"seed": seed, "model": {"name_or_path": HOSTILE}})
    )
    metrics, validations = [], []
    for step in range(1, num_steps + 1):
        loss = 2 + seed + 8 / step
        record = {
            **{"step": step, "epoch": step / num_steps, "rows": step, "tokens": 1000 * step, "loss": loss},
            **{"loss_by_component": {component: loss, "augmented": loss - 0.5}, "lr": 1e-3 / step, "grad_norm": 1.0},
            **{"tokens_per_second": 500.0, "mfu": 0.4, "seconds": 2.0 * step, "data_seconds": 0.01},
        }
        if step == 100:
            record |= {"loss": None, "skipped": HOSTILE}
        metrics.append(json.dumps(record))
        if step % 100 == 0:
            validations.append(json.dumps({"step": step, "losses": {component: loss, "all": loss}}))
    (folder / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    (folder / "validation.jsonl").write_text("\n".join(validations) + "\n")
    return str(folder)


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self._in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_cell = tag in ("td", "th")
        if self._in_cell:
            self.cells.append("")

    def handle_endtag(self, tag):
        self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.cells[-1] += data


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_run_leaves_its_page(tmp_path):
    shards = write_example_shards(str(tmp_path))
    output = tmp_path / "output"
    arguments = [
        *("--shards", shards, "--output", str(output), "--model.init", "scratch", "--model.preset", "tiny"),
        *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "4", "--device", "cpu", "--validation.every_steps"),
        *("2", "--logging.peak_tflops", "1", "--checkpoint.every_steps", "null"),
    ]
    assert pretrain(arguments) == 0
    text = (output / "report.html").read_text()
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    charts = {chart["chart_id"]: chart for chart in data_of(text)["charts"]}
    assert set(charts) == {"loss", "loss-by-component", "validation", "lr", "grad-norm", "throughput", "mfu"}
    [curve] = charts["loss"]["curves"]
    assert curve["steps"] == [record["step"] for record in metrics]
    assert curve["tokens"] == [record["tokens"] for record in metrics]
    assert curve["values"] == pytest.approx([record["loss"] for record in metrics], rel=1e-5)
    assert {curve["name"] for curve in charts["validation"]["curves"]} == {"raw", "instructions", "all"}
    cells = Tags(text).cells
    training = json.loads((output / "training.json").read_text())
    for expected in (
        "completed",
        f"{training['tokens_seen']:,}",
        training["shards_fingerprint"],
        f"{training['validation']['after']['raw']:.4f}",
        "optimizer.learning_rate",
        "raw",
        "151,872",
    ):
        assert expected in cells, expected
    # Another time, the same bytes; and without the shards, a page all the same.
    assert make_page([str(output)]) == 0
    assert (output / "report.html").read_text() == text
    shutil.rmtree(shards)
    assert make_page([str(output)]) == 0
    assert training["shards_fingerprint"] in Tags((output / "report.html").read_text()).cells


def test_strings_of_the_runs_are_text(tmp_path):
    page = tmp_path / "page.html"
    runs = [write_run(tmp_path / name, component=HOSTILE) for name in ("one", "a<b>&'\"")]
    assert make_page([*runs, "--output", str(page)]) == 0
    text = page.read_text()
    parsed = Tags(text)
    assert [tag for tag, _ in parsed.tags if tag in ("img", "iframe", "object", "b")] == []
    assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert HOSTILE in parsed.cells
    data = data_of(text)
    assert data["runs"] == ["one", "a<b>&'\""]
    assert data["charts"][0]["marks"][0]["reason"] == HOSTILE
    assert HOSTILE in {curve["name"] for curve in data["charts"][2]["curves"]}


def test_needs_no_network(tmp_path):
    text = render(tmp_path)
    parsed = Tags(text)
    assert not [attributes for _, attributes in parsed.tags if {"src", "href"} & attributes.keys() - {"href"}]
    assert [attributes["href"] for tag, attributes in parsed.tags if "href" in attributes] == ["data:,"]
    # The namespace of SVG is a name and not an address.
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    policy = next(attributes for _, attributes in parsed.tags if attributes.get("http-equiv"))["content"]
    assert policy.startswith("default-src 'none';")


def render(tmp_path, *names):
    page = tmp_path / "page.html"
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(names or ("run",))]
    assert make_page([*runs, "--output", str(page)]) == 0
    return page.read_text()


def test_configs_are_compared(tmp_path):
    runs = [
        write_run(tmp_path / name / "model", config={"seed": seed, "same": 1, "model": {"preset": "tiny"}})
        for seed, name in enumerate(("vanilla", "instruct"))
    ]
    assert make_page([*runs, "--output", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    # As much of the paths as tells the runs apart.
    assert data_of(text)["runs"] == ["vanilla/model", "instruct/model"]
    rows = re.findall(r'<tr( class="differs")?><th scope="row">([\w. ]+)</th>', text)
    assert {"seed", "same", "model.preset"} <= {name for _, name in rows}
    assert {name for differs, name in rows if differs} == {"seed"}


def test_errors_say_what_to_do(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert make_page([run, str(tmp_path / "nothing"), "--output", str(tmp_path / "page.html")]) == 2
    assert "holds no training run" in capsys.readouterr().err
    assert make_page([run, write_run(tmp_path / "other")]) == 2
    assert "give --output" in capsys.readouterr().err
    assert make_page([run, run, "--output", str(tmp_path / "page.html")]) == 2
    assert "named twice" in capsys.readouterr().err
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert make_page([run]) == 2
    assert "has not logged a step yet" in capsys.readouterr().err


# Does what a reader does, and writes down what the page then shows.
_READER = """
<script>
addEventListener("load", () => setTimeout(() => {
  const seen = { errors: window.pageErrors };
  const figure = document.querySelector('figure[data-chart="loss"]');
  const svg = () => figure.querySelector("svg[role]"), lines = () => figure.querySelectorAll("polyline").length;
  const press = (key) => svg().dispatchEvent(new KeyboardEvent("keydown", { key }));
  const change = (id, how) => {
    const control = document.getElementById(id);
    how(control);
    control.dispatchEvent(new Event("change"));
  };
  const points = () => figure.querySelector("polyline").getAttribute("points");
  seen.charts = document.querySelectorAll("svg[role]").length;
  seen.marks = figure.querySelectorAll("path.mark").length;
  seen.label = svg().getAttribute("aria-label");
  seen.lines = lines();
  press("Home"); press("ArrowRight");
  seen.second = figure.querySelector("output").textContent;
  const box = svg().getBoundingClientRect();
  svg().dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 12 }));
  seen.hovered = figure.querySelector("output").textContent;
  const before = points();
  change("log-x", (box) => { box.checked = true; });
  seen.logChanges = points() !== before;
  change("log-x", (box) => { box.checked = false; });
  seen.logReturns = points() === before;
  change("axis", (list) => { list.value = "tokens"; });
  press("End");
  seen.tokens = figure.querySelector("output").textContent;
  figure.querySelector(".legend button")?.click();
  seen.linesLeft = lines();
  seen.title = document.title;
  seen.overflows = document.documentElement.scrollWidth > innerWidth;
  const report = document.createElement("pre");
  report.id = "seen";
  report.textContent = JSON.stringify(seen);
  document.body.append(report);
}, 300));
</script>
"""
_ERROR_TRAP = """
<script>
window.pageErrors = [];
addEventListener("error", (event) => pageErrors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => pageErrors.push(`blocked: ${event.blockedURI}`));
</script>
"""


@needs_browser
@pytest.mark.parametrize(("names", "width"), [(("run",), 1200), (("vanilla", "a<b>&'\"instruct"), 480)])
def test_in_a_browser(tmp_path, names, width):
    text = render(tmp_path, *names)
    page = tmp_path / "page.html"
    page.write_text(text.replace("<style>", _ERROR_TRAP + "<style>", 1).replace("</body>", _READER + "</body>"))
    process = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={width},900", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"),
            f"file://{page}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in process.stderr
    match = re.search(r'<pre id="seen">(.*?)</pre>', process.stdout, re.DOTALL)
    assert match, process.stderr[-2000:]
    seen = json.loads(html.unescape(match[1]))
    assert seen["errors"] == []
    assert seen["charts"] == 7
    assert seen["marks"] == len(names)
    assert not seen["overflows"]
    assert seen["logChanges"]
    assert seen["logReturns"]
    assert seen["title"] == f"{' / '.join(names)}: pre-training"
    if len(names) == 1:
        assert seen["label"] == "Training loss (nats a token). At the end: Training loss (nats a token) 2.027."
        assert seen["second"] == "step 2: 6 (smoothed 6)"
        assert seen["hovered"] == "step 300: 2.027 (smoothed 2.027)"
        assert seen["tokens"].startswith("300k tokens: 2.027")
        assert seen["lines"] == seen["linesLeft"] == 2
    else:
        assert seen["second"] == f"step 2: vanilla 6 (smoothed 6), {names[1]} 7 (smoothed 7)"
        assert (seen["lines"], seen["linesLeft"]) == (4, 2)
