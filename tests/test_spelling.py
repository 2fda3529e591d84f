"""Ultralytics' spelling, `key=value`, in the words of this command line; verbs that are asked for in other words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from refusals import INPUT, USAGE

import qexport
from qexport.cli.app import export_app, main, verb_first
from qexport.cli.spelling import Spelled, Vocabulary, join_pairs, known_to, spell
from qexport.errors import UsageError
from qexport.vocabulary import closest

EXPORT = known_to(export_app, "")
QAT = Vocabulary(frozenset({"resume"}), frozenset({"epochs", "precision"}), mode="train")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (
            "model=yolo26n.pt format=tflite int8=True data=coco8.yaml imgsz=640",
            "yolo26n.pt --format tflite --int8 --data coco8.yaml --imgsz 640",
        ),
        ("yolo26n.pt format=engine half=true", "yolo26n.pt --format engine --half"),
        ("format=onnx mode=export model=a.pt task=detect", "a.pt --format onnx"),
        ("--nms model=a.pt batch=4", "a.pt --nms --batch 4"),
        ("a.pt quantize=8", "a.pt --int8"),
        ("a.pt quantize=FP16", "a.pt --half"),
        ("a.pt quantize=32", "a.pt --precision fp32"),
        ("a.pt quantize=w8a16", "a.pt --precision w8a16"),
        ("a.pt quantize=w8a32", "a.pt --precision int8-dynamic"),
        ("a.pt quantize=None int8=False half=0 data=None nms=False dynamic=1", "a.pt --dynamic"),
        ("a.pt end2end=False", "a.pt --head one2many"),
        ("a.pt imgsz=[480, 640] int8=1", "a.pt --imgsz 480,640 --int8"),
        ("a.pt imgsz=(480,640)", "a.pt --imgsz 480,640"),
        ("a.pt imgsz=[480 640]", "a.pt --imgsz 480,640"),
        ("model = a.pt format= onnx int8 =True", "a.pt --format onnx --int8"),
        ("a.pt imgsz = 640 --nms -- data = x", "a.pt --imgsz 640 --nms -- data = x"),
        ("model='a.pt', format=onnx,", "a.pt --format onnx"),
        ("model=a.pt int8 half=False", "a.pt --int8"),
        ("a.pt eval_data=v.yaml max-drop=2 no_eval=True", "a.pt --eval-data v.yaml --max-drop 2 --no-eval"),
        (
            "a.pt --cpu onnx=arm --option level=3 -o a=b -f onnx",
            "a.pt --cpu onnx=arm --option level=3 -o a=b -f onnx",
        ),
        ("model=--trust-checkpoint data=-d.yaml", "./--trust-checkpoint --data=-d.yaml"),
        ("int8=True -- format=onnx", "--int8 -- format=onnx"),
        ("./a=b.pt --half", "./a=b.pt --half"),
    ],
)
def test_pairs_become_options(given: str, meant: str) -> None:
    assert spell(join_pairs(given.split()), EXPORT).words == tuple(meant.split())


def test_a_file_with_an_equals_sign_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("format=tflite").touch()
    Path("int8").touch()
    assert spell(["format=tflite", "int8", "half=True"], EXPORT).words == ("format=tflite", "int8", "--half")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "formt=tflite a.pt int8=True",
            "formt=tflite is neither a file nor an option: did you mean format=tflite, which is "
            "qexport --format tflite a.pt --int8",
        ),
        (
            "a.pt quantise=8",
            "quantise=8 is neither a file nor an option: did you mean quantize=8, which is qexport a.pt --int8",
        ),
        ("runs=3/best.pt", "runs=3/best.pt is neither a file nor an option: see qexport --help"),
        (
            "modle=best.pt",
            "modle=best.pt is neither a file nor an option: did you mean model=best.pt, which is qexport best.pt",
        ),
        ("a.pt formt=tflite zzzz=1", "formt=tflite is neither a file nor an option: did you mean format=tflite"),
        ("a.pt INT8=1", "INT8=1 is neither a file nor an option: did you mean int8=1, which is qexport a.pt --int8"),
        ("a.pt data=", "data= has no value: give one, or leave it out"),
        ("a.pt int8=", "int8= has no value: give one, or leave it out"),
        ("a.pt format=,", "format= has no value: give one, or leave it out"),
        ("a.pt int8=yes", "int8 cannot be 'yes': give True or False"),
        (
            "a.pt quantize=4",
            "quantize=4 is out of range: give 32, fp32, w32a32, 16, fp16, w16a16, 8, int8, w8a8, w8a16 or w8a32",
        ),
        ("a.pt name=exp", "name=exp has no meaning here: give --out FOLDER, or --target DEVICE"),
        (
            "a.pt conf=0.4",
            "conf=0.4 has no meaning here: leave it out, and compare scores with a threshold when you read the outputs",
        ),
        ("mode=val a.pt", "mode=val is none of qexport's: see qexport --help: it exports, and qat trains"),
    ],
)
def test_what_has_no_meaning_is_refused_with_what_to_do(given: str, line: str) -> None:
    with pytest.raises(UsageError) as refused:
        spell(given.split(), EXPORT)
    assert str(refused.value) == line


def test_what_is_not_needed_is_said_where_it_asks_for_something() -> None:
    found = spell(["a.pt", "simplify=True", "optimize=False", "keras=False"], EXPORT)
    assert found.words == ("a.pt",)
    assert found.notes == ("simplify=True is not needed: each format has the graph that suits its runtime",)


def test_every_key_of_ultralytics_is_understood_by_an_export() -> None:
    """Its export takes them all, whether or not it reads them: a line that works there ends in no error about a key."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    assert {"keras", *DEFAULT_CFG_DICT} - {key for key in (*DEFAULT_CFG_DICT, "keras") if EXPORT.knows(key)} == set()
    harmless = {"keras": "True", "save": "True", "plots": "True", "seed": "7", "scale": "0.4", "optimize": "True"}
    found = spell(["a.pt", *(f"{key}={value}" for key, value in harmless.items())], EXPORT)
    assert found.words == ("a.pt",)
    assert [note.partition("=")[0] for note in found.notes] == list(harmless)
    assert found.notes[0] == "keras=True is not needed: TFLite files are written without Keras"
    assert found.notes[1] == "save=True is not needed: an export does not read it"


def test_keys_of_training_are_not_left_out_of_a_training() -> None:
    with pytest.raises(UsageError, match=r"^cos_lr=True is neither a file nor an option: "):
        spell(["a.pt", "cos_lr=True"], QAT, ["qat"])


def test_a_verb_has_its_own_options() -> None:
    assert spell(["task=pose"], Vocabulary(frozenset(), frozenset({"task"})), ["demo"]) == Spelled(("--task", "pose"))
    given = ["model=a.pt", "mode=train", "epochs=3", "int8=True", "resume=True"]
    assert spell(given, QAT, ["qat"]).words == ("a.pt", "--epochs", "3", "--precision", "int8", "--resume")
    with pytest.raises(UsageError, match=r"did you mean epochs=3, which is qexport qat a\.pt --epochs 3$"):
        spell(["a.pt", "epoch=3"], QAT, ["qat"])


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (
            ["export", "model=absent.pt", "half=True", "simplify=True"],
            [
                "→ simplify=True is not needed: each format has the graph that suits its runtime",
                "→ qexport absent.pt --half",
                "→ absent.pt to TFLite in FP16; not scored: there is no --data; files go to qexport_out/absent",
            ],
            INPUT,
        ),
        (["absent.pt", "half=True", "--quiet"], [], INPUT),
        (["absent.pt", "half=True", "json=True"], [], INPUT),
        (["qat", "model=absent.onnx", "data=d.yaml"], ["→ qexport qat absent.onnx --data d.yaml"], USAGE),
    ],
)
def test_what_was_understood_is_shown_once(
    words: Sequence[str],
    said: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    output, errors = capfd.readouterr()
    assert output == ""
    *before, last = errors.splitlines()
    assert before == said
    assert "absent" in last


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["export", "a.pt", "--half"], ["a.pt", "--half"]),
        (["detect", "export", "model=a.pt"], ["model=a.pt"]),
        (["export"], ["--help"]),
        ([], ["--help"]),
        (["help"], ["--help"]),
        (["help", "export"], ["--help"]),
        (["help", "qat"], ["qat", "--help"]),
        (["help", "list"], ["formats", "--help"]),
        (["list"], ["formats"]),
        (["a.pt", "export"], ["a.pt", "export"]),
        (["export", "list", "--half"], ["./list", "--half"]),
        (["export", "cache"], ["./cache"]),
        (["segment", "train", "model=a.pt"], ["train", "model=a.pt"]),
    ],
)
def test_verbs_in_other_words(words: list[str], meant: list[str]) -> None:
    assert verb_first(words) == meant


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["help", "qta"],
            "help qta is out of range: give export, cache, demo, doctor, formats, qat, report, sensitivity, snippet, "
            "sweep, verify or diff; did you mean qat",
        ),
        (["exprt", "a.pt"], "exprt is neither a file nor a verb: did you mean qexport export"),
        (["predict", "model=a.pt"], "predict is neither a file nor a verb: did you mean qexport snippet"),
        (["a.pt", "--int8=True"], "Option '--int8' does not take a value: see qexport --help"),
        (["a.pt", "b.pt"], "Got unexpected extra argument(s) (b.pt): see qexport --help"),
        (["a.pt", "--format", "tflite", "onnx"], "Got unexpected extra argument(s) (onnx): give --format tflite,onnx"),
        (
            ["a.pt", "-f", "tflite,", "ort,", "openvino"],
            "Got unexpected extra argument(s) (ort, openvino): give --format tflite,ort,openvino",
        ),
        (["a.pt", "--format", "tflite", "b.pt"], "Got unexpected extra argument(s) (b.pt): see qexport --help"),
        (
            ["a.pt", "--format", "all"],
            "format all is none: name those that are meant, such as --format onnx,openvino,tflite",
        ),
        (["verify"], "Missing argument FILE: see qexport verify --help"),
        (["diff"], "Missing argument ONE: see qexport diff --help"),
        (["diff", "a.onnx"], "Missing argument OTHER: see qexport diff --help"),
        (["sweep"], "Missing argument FILE: see qexport sweep --help"),
        (
            ["snippet", "m.onnx", "--lang", "pyhton"],
            "--lang pyhton is out of range: give python, js, cpp or kotlin; did you mean python",
        ),
        (["a.pt", "--dat", "d.yaml"], "No such option: --dat: did you mean --data"),
        (["a.pt", "--zzz"], "No such option: --zzz: see qexport --help"),
        (["cache", "--clean"], "No such option: --clean: did you mean --clear"),
        (["a.pt", "--config", "absent"], "config absent cannot be read (No such file or directory): give a YAML file"),
        (["", "--half"], "no model given: qexport MODEL.pt --format tflite --int8 --data DATA.yaml"),
        (["a.pt", "--data", ""], "--data cannot be '': give another value"),
        (["a.pt", "--imgsz", "big"], "--imgsz cannot be 'big': give pixels, such as 640, or height and width, 480,640"),
        (["train", "model=a.pt"], "train is neither a file nor a verb: did you mean qexport qat"),
        (
            ["demo", "--task", "clasify"],
            "--task clasify is out of range: give detect, segment, pose, obb or classify; did you mean classify",
        ),
        (
            ["verify", __file__, "--runtime", "tensorflw"],
            "--runtime tensorflw is out of range: give tensorflow; did you mean tensorflow",
        ),
        (
            ["a.onnx", "--pixels", "imagnet"],
            "--pixels imagnet is not known: give 0..1, 0..255, imagenet, or three means and three "
            "deviations of channels in 0..1, comma-separated; did you mean imagenet",
        ),
        (
            ["a.pt", "--half", "--head", "end2edn"],
            "--head end2edn is out of range: give end2end or one2many; did you mean end2end",
        ),
        (
            ["qat", "a.pt", "--data", "d.yaml", "--weights", "fre"],
            "--weights fre is out of range: give within-step or free; did you mean free",
        ),
        (
            ["qat", "a.pt", "--data", "d.yaml", "--effort", "bst"],
            "--effort bst is out of range: give none, fast, balanced or best; did you mean best",
        ),
        (
            ["sensitivity", "a.pt", "--data", "d.yaml", "--ranges", "minmx"],
            "--ranges minmx is out of range: give percentile, minmax, average-minmax, entropy, mse, "
            "weighted-mse or auto; did you mean minmax",
        ),
        (
            ["sensitivity", "a.pt", "--data", "d.yaml", "--format", "tflit"],
            "unknown format tflit: choose from edgetpu, onnx, openvino, tensorrt, tflite; did you mean tflite",
        ),
        (
            ["a.pt", "--int8"],
            "--int8 needs images to calibrate with and to verify on: add --data DATA.yaml, for "
            "example: qexport a.pt --int8 --data DATA.yaml",
        ),
        (
            ["yolo26n-seg.pt", "-f", "onnx", "--precision", "int8"],
            "--precision int8 needs images to calibrate with and to verify on: add --data DATA.yaml, "
            "for example: qexport yolo26n-seg.pt --format onnx --int8 --data coco8-seg.yaml",
        ),
        (
            ["a.pt", "--half", "--max-drop", "2"],
            "--max-drop needs images to measure accuracy on: add --data DATA.yaml",
        ),
    ],
)
def test_a_word_that_is_none_gets_the_one_that_was_meant(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == USAGE
    assert capsys.readouterr().err == f"qexport: error: {line}\n"


@pytest.mark.parametrize(
    ("word", "names", "expected"),
    [
        ("dat", ("batch", "data", "dla"), "data"),
        ("yolo26.pt", ("yolo26n.pt", "yolo26x.pt"), "yolo26n.pt"),
        ("yolo26.pt", ("yolo26x.pt", "yolo26n.pt"), "yolo26x.pt"),
        ("missing.yaml", ("lvis.yaml",), ""),
        ("missing", ("lvis",), ""),
        ("coco.yml", ("lvis.yaml", "coco.yaml"), "coco.yaml"),
        ("Calib_Images", ("calib-images",), "calib-images"),
        ("a.b", ("a_c", "a-b"), "a-b"),
    ],
)
def test_what_is_suggested_is_near_and_of_equals_the_first(word: str, names: tuple[str, ...], expected: str) -> None:
    assert closest(word, names) == expected


def test_one_function_finds_what_was_meant() -> None:
    source = Path(qexport.__file__).parent
    users = [path.relative_to(source) for path in source.rglob("*.py") if "difflib" in path.read_text("utf-8")]
    assert users == [Path("vocabulary.py")]
