"""Mistakes that a person makes: what is typed, the exit code, and what the message must say.

Places in a line: {b} a bundle, {other} another bundle, {device} and {cloud} runs of it, {t} a directory with the
files that `tests/walk/test_mistakes.py` makes.
"""

from __future__ import annotations

from typing import NamedTuple

SERVE = "serve --bundle {b} --trainer tcp://127.0.0.1:9 --wait 0.1"
EXPORT = "export --model vit_tiny_patch16_224 --split 3 -o {t}/out"
EVALUATE = "evaluate --data digits -o {t}/study"


class Mistake(NamedTuple):
    """One line that a person types, and phrases of the answer: what came, what was expected, how to mend it."""

    what: str
    line: str
    words: tuple[str, ...]
    code: int = 2


def _serve(what: str, more: str, *words: str) -> Mistake:
    return Mistake(what, f"{SERVE} {more}", words)


LIGHT = [  # torch is not needed to tell
    Mistake("a typo in the command", "srve --bundle {b}", ("'srve'", "Did you mean 'serve'?")),
    Mistake(
        "a typo in a command of keys", "keys alow x {t}/keys/public.key --keys {t}/keys", ("No such command 'alow'",)
    ),
    Mistake("a typo in an option", f"{SERVE} --bundel {{b}}", ("No such option '--bundel'", "--bundle")),
    Mistake(
        "a rule of averaging where nothing is averaged",
        "trainer --bundle {b} --robust median",
        ("--robust with --mode parallel", "--mode averaged", "leave --robust out, or choose the mode"),
    ),
    Mistake(
        "turns of no length",
        "trainer --bundle {b} --mode sequential --average-every 0",
        ("'--average-every'", "x>=1"),
    ),
    Mistake(
        "augmentation of what is stored where nothing is stored",
        "trainer --bundle {b} --store-mix 1",
        ("--store-mix 1 with no run directory (--run)", "keeps what devices send", "leave the augmentation out"),
    ),
    Mistake("a share that is none", "trainer --bundle {b} --store-drop 1", ("'--store-drop'", "0<=x<=0.95")),
    _serve(
        "a trunk that is frozen and learns first",
        "--trunk frozen --freeze-after 2",
        "--freeze-after 2 with --trunk frozen",
        "leave one of them out",
    ),
    _serve(
        "images sent once by a trunk that learns",
        "--send-epochs 2",
        "--send-epochs 2 with --trunk train",
        "--freeze-after E for a trunk that learns for E epochs first",
    ),
    Mistake("no --bundle", "serve --trainer tcp://127.0.0.1:9", ("Missing option '--bundle'",)),
    Mistake("no --trainer", "serve --bundle {b}", ("Missing option '--trainer'",)),
    Mistake("options left out", "serve {b} tcp://127.0.0.1:9", ("Missing option '--bundle'",)),
    Mistake("a word too many", f"{SERVE} extra", ("unexpected extra argument", "extra")),
    # The bundle.
    Mistake(
        "no bundle there", "serve --bundle {t}/absent --trainer tcp://127.0.0.1:9", ("no bundle at", "adc-edge export")
    ),
    Mistake(
        "a file of the bundle instead of the bundle",
        "serve --bundle {b}/client.onnx --trainer tcp://127.0.0.1:9",
        ("no bundle at", "Not a directory", "a directory made by `adc-edge export`"),
    ),
    Mistake(
        "an empty directory as the bundle",
        "serve --bundle {t}/empty --trainer tcp://127.0.0.1:9",
        ("no bundle at", "manifest.json", "adc-edge export"),
    ),
    Mistake(
        "a run instead of its bundle",
        "serve --bundle {device} --trainer tcp://127.0.0.1:9",
        ("is the directory of a run", "`adc-edge export`", "the bundle of that run"),
    ),
    Mistake(
        "a bundle of another version",
        "serve --bundle {t}/newer --trainer tcp://127.0.0.1:9",
        ("has bundle format 99", "format 1", "export it again with this adc-edge"),
    ),
    Mistake(
        "a bundle that was cut off",
        "serve --bundle {t}/cut --trainer tcp://127.0.0.1:9",
        ("client.onnx was changed or damaged", "copy or export the bundle again"),
    ),
    Mistake(
        "an empty manifest",
        "serve --bundle {t}/mempty --trainer tcp://127.0.0.1:9",
        ("manifest.json", "truncated", "a manifest as `adc-edge export` writes it"),
    ),
    # The trainer's address.
    Mistake(
        "bundle and trainer swapped",
        "serve --bundle tcp://127.0.0.1:9 --trainer {b}",
        ("it does not begin with tcp://", "tcp://HOST:PORT", "for example"),
    ),
    _serve("an address without tcp://", "--trainer 127.0.0.1:5700", "does not begin with tcp://", "tcp://HOST:PORT"),
    _serve("a web address", "--trainer http://127.0.0.1:5700", "does not begin with tcp://", "tcp://127.0.0.1:5700"),
    _serve("an address without a port", "--trainer tcp://127.0.0.1", "it has no port", "tcp://HOST:PORT"),
    _serve("a port above 65535", "--trainer tcp://127.0.0.1:99999", "'99999'", "from 1 to 65535"),
    _serve("letters in a port", "--trainer tcp://127.0.0.1:57OO", "'57OO'", "from 1 to 65535"),
    _serve("the trainer's --bind typed on the device", "--trainer tcp://127.0.0.1:*", "'*'", "from 1 to 65535"),
    _serve("no keys across a network", "--trainer tcp://192.0.2.1:5700", "not loopback", "keys new", "--insecure"),
    Mistake(
        "a host that is not known",
        f"{SERVE} --trainer tcp://no-such-host.invalid:5700 --insecure",
        ("name unknown: no-such-host.invalid", "a running `adc-edge trainer`", "check address"),
        1,
    ),
    Mistake("the trainer does not run", SERVE, ("no trainer at", "connection refused", "--wait inf"), 1),
    Mistake("link: the trainer does not run", "link --trainer tcp://127.0.0.1:9 --wait 0.1", ("no trainer at",), 1),
    Mistake(
        "plan: another file instead of the link's",
        "plan --bundle {b} --link {b}/manifest.json",
        ("manifest.json: Object missing required field `trainer`", "a link that `adc-edge link --json` measured"),
    ),
    Mistake(
        "plan: no study there",
        "plan --bundle {b} --link {t}/link.json --study {t}/empty",
        ("neither results.json nor privacy.json", "adc-edge evaluate"),
    ),
    Mistake(
        "plan: the link of another trainer",
        "plan --bundle {b} --link {t}/link.json --trainer tcp://10.0.0.9:5700",
        ("is the link to tcp://127.0.0.1:5700", "the link to --trainer tcp://10.0.0.9:5700", "measure it"),
    ),
    Mistake(
        "plan: a goal that nothing keeps",
        "plan --bundle {b} --link {t}/link.json --target-step-time 1e-6",
        ("no setting of known accuracy keeps --target-step-time", "at most 1e-06 s a step", "loosen a goal"),
        1,
    ),
    Mistake(
        "plan: megabytes of an epoch without images",
        "plan --bundle {b} --link {t}/link.json --max-mb-per-epoch 3",
        ("--max-mb-per-epoch 3 without a number of images", "--images N"),
    ),
    Mistake(
        "link: too few bytes to measure with",
        "link --trainer tcp://127.0.0.1:9 --max-bytes 100kB",
        ("--max-bytes 100000", "at least 500 kB", "raise --max-bytes"),
    ),
    Mistake(
        "link: a plot of another kind",
        "link --trainer tcp://127.0.0.1:9 --plot link.pdf",
        ("--plot link.pdf", ".png or .svg", "link.svg"),
    ),
    Mistake(
        "link --repeat without a file", "link --trainer tcp://127.0.0.1:9 --repeat 10m", ("--log FILE", "link.jsonl")
    ),
    Mistake("link for too short a time", "link --trainer tcp://127.0.0.1:9 --seconds 0", ("'--seconds'", "x>=0.5")),
    # Data.
    _serve("a typo in the source", "--data digit", "'digit'", "folder:PATH", "do you mean digits?"),
    _serve(
        "a typo in the kind of source", "--data folders:{t}/photos", "data source", "do you mean folder:{t}/photos?"
    ),
    _serve("a directory without folder:", "--data {t}/photos", "data source", "--data folder:{t}/photos"),
    _serve("an .npz without npz:", "--data {t}/d.npz", "data source", "--data npz:{t}/d.npz"),
    _serve("a source without its path", "--data cifar10", "data source 'cifar10'", "do you mean cifar10:PATH?"),
    _serve("a directory that is not there", "--data folder:{t}/absent", "is no directory", "check the path"),
    _serve("a file instead of a directory", "--data folder:{t}/text", "is no directory", "check the path"),
    _serve(
        "an empty directory", "--data folder:{t}/empty", "holds no image", "PATH/CLASS/*.jpg", "one folder for each"
    ),
    _serve("images without class folders", "--data folder:{t}/flat", "4 loose images", "move its images there"),
    _serve("one image alone", "--data folder:{t}/one", "too few to hold a tenth of them out", "add images"),
    _serve("a name that is not UTF-8", "--data folder:{latin}", "holds no image", "add images"),
    _serve("no .npz there", "--data npz:{t}/absent.npz", "No such file", "x_train", "check the path"),
    _serve("a directory as .npz", "--data npz:{t}/photos", "Is a directory", "check the path"),
    _serve("an empty file as .npz", "--data npz:{t}/nothing", "no .npz archive", "numpy.savez"),
    _serve("images that are NaN", "--data npz:{t}/nan.npz", "nan to nan", "without NaN", "np.nan_to_num"),
    _serve("labels alone", "--data npz:{t}/labels.npz", "y without x", "numpy.savez"),
    _serve("fewer labels than images", "--data npz:{t}/fewer.npz", "[40, 8, 8]", "[30]", "one label for each image"),
    _serve("labels above the classes", "--data npz:{t}/twelve.npz", "labels from 0 to 11", "--num-classes 12"),
    _serve("a table with other columns", "--data csv:{t}/columns.csv", "name, kind", "path and label", "first line"),
    _serve("a table of files that are gone", "--data csv:{t}/gone.csv", "line 2", "no such file", "mend the path"),
    _serve("an empty table", "--data csv:{t}/nothing", "line 1: nothing", "path and label"),
    _serve("a module that is not there", "--data flowers:make", "no module 'flowers'", "current directory"),
    _serve("a function that is not there", "--data json:nothing", "no attribute 'nothing'", "check the name"),
    _serve("a function with arguments", "--data json:loads", "takes arguments", "a function without arguments"),
    # Numbers and names.
    _serve("a typo in the precision", "--precision int9", "'int9' is not one of", "'int8'"),
    _serve("a typo in a list of precisions", "--precision pca4,pca9", "'pca9' is not one of", "'pca0.5'"),
    _serve(
        "a list of precisions and a plan",
        "--precision pca4,pca1 --plan auto",
        "--plan with precisions that change by epoch: pca4,pca1 up",
        "leave --plan out",
    ),
    _serve("a typo in the engine", "--engine onnx", "'onnx' is not one of", "'onnxruntime'"),
    _serve("a typo in an augmentation", "--augment flipp", "flipp is unknown", "for example --augment flip"),
    _serve("a ratio above 1", "--ratio 10", "'--ratio': 10.0 is not in the range", "x<=1.0"),
    _serve("a ratio in per cent", "--ratio 10%", "'--ratio': '10%'"),
    _serve("a comma instead of a point", "--ratio 0,1", "'--ratio': '0,1'"),
    _serve("a ratio that is NaN", "--ratio nan", "'nan' is not a number"),
    _serve(
        "half of a pair of ratios", "--token-ratio 0.5", "--token-ratio 0.5", "--batch-ratio and --token-ratio together"
    ),
    _serve("a learning rate that is NaN", "--lr nan", "'nan' is not a number"),
    _serve("an infinite learning rate", "--lr inf", "'inf' is not a finite number"),
    _serve("a negative learning rate", "--lr -1", "-1.0 is not in the range x>=0"),
    _serve("fewer than no steps", "--steps -1", "-1 is not in the range x>=0"),
    _serve("steps as 1e3", "--steps 1e3", "'--steps': '1e3'"),
    _serve("no epoch", "--epochs 0", "0 is not in the range x>=1"),
    _serve("steps and epochs", "--steps 1 --epochs 1", "--steps and --epochs", "one of them", "leave one out"),
    _serve("a batch of one image", "--batch-size 1", "1 is not in the range x>=2"),
    _serve("a batch above the data", "--batch-size 5000", "1437", "5000", "lower --batch-size"),
    _serve("parts that do not divide a batch", "--micro-batches 7", "7 of a batch of 16", "divides the batch"),
    _serve("a channel without any signal", "--snr-up nan", "nan dB", "-200 to 200 dB"),
    _serve("more bit errors than bits", "--bit-errors 1", "1.0 is not in the range 0<=x<=0.5"),
    # Engines, keys, outputs, runs, files of options.
    _serve("TensorRT without its graph", "--engine tensorrt", "no client.fp16.onnx", "export it again with --tensorrt"),
    _serve(
        "CUDA for a trunk that does not learn",
        "--shim-device cuda --trunk frozen",
        "which PyTorch does not compute",
        "leave --shim-device out",
    ),
    _serve("int8 for a trunk that learns", "--compute int8", "a trunk that trains", "add --trunk frozen"),
    _serve(
        "int8 that was not calibrated", "--compute int8 --trunk frozen", "no calibration.json", "adc-edge calibrate"
    ),
    _serve("no keys there", "--keys {t}/absent", "no key at", "`keys new`", "adc-edge keys new --keys {t}/absent"),
    _serve("no trainer pinned", "--keys {t}/keys", "no key at", "trainer.key", "adc-edge keys pin FILE"),
    _serve("keys and --insecure", "--keys {t}/keys --insecure", "--keys and --insecure", "leave one out"),
    _serve("a report onto a directory", "--report {t}/empty", "it is a directory, not a file", "choose another path"),
    _serve(
        "a report below a file", "--report {t}/text/report.json", "is a file, not a directory", "choose another path"
    ),
    _serve("a report onto a device", "--report /dev/full", "a device or a pipe", "choose another path"),
    _serve("a file as the run", "--run {t}/text", "it is a file, not a directory", "choose another path"),
    Mistake(
        "--resume of nothing", "serve --resume {t}/absent", ("No such file", "the --run directory", "check the path")
    ),
    Mistake("--resume of a file", "serve --resume {t}/text", ("Not a directory", "the --run directory")),
    Mistake(
        "--resume of the trainer's run",
        "serve --resume {cloud}",
        ("a run of trainer", "a run of serve", "type adc-edge trainer --resume"),
    ),
    Mistake("no file of options there", "serve --config {t}/absent", ("No such file", "a TOML file", "--dump-config")),
    Mistake("a typo in a file of options", "serve --config {t}/typo.toml", ("'precison'", "do you mean precision?")),
    Mistake("a broken file of options", "serve --config {t}/broken.toml", ("line 1", "a TOML file", "--dump-config")),
    # Keys.
    Mistake("keys without --keys", "keys new", ("Missing option '--keys'",)),
    Mistake("keys that are there already", "keys new --keys {t}/keys", ("secret.key exists", "remove it first")),
    Mistake("keys into a file", "keys new --keys {t}/text", ("File exists", "check the path"), 1),
    Mistake("name and key swapped", "keys allow {t}/keys/public.key x --keys {t}/keys", ("first", "keys allow x {t}")),
    Mistake("the secret key", "keys allow x {t}/keys/secret.key --keys {t}/keys", ("is a secret key", "public.key")),
    Mistake("a file that is no key", "keys pin {t}/text --keys {t}/keys", ("holds no public key", "public = ")),
    Mistake(
        "a path as a name", "keys allow ../x {t}/keys/public.key --keys {t}/keys", ("'../x'", "for example cam-01")
    ),
    Mistake("a device that is not allowed", "keys revoke x --keys {t}/keys", ("'x'", "here none is", "keys list")),
    Mistake(
        "two devices with one key",
        "keys allow y {t}/keys/public.key --keys {t}/keys-trainer",
        ("already, as x", "use x"),
    ),
    # Inference.
    Mistake("infer: nothing to judge", "infer --bundle {b}", ("no images", "--watch DIR", "name one of the two")),
    Mistake(
        "infer: no head anywhere",
        "infer --bundle {b} {t}/flat",
        ("no head anywhere", "has no model.onnx", "`adc-edge trainer --serve-only`", "--whole"),
    ),
    Mistake(
        "infer: a run's trunk without its head",
        "infer --bundle {b} --weights {device} {t}/flat",
        ("no head anywhere", "has not learned --weights", "adc-edge merge"),
    ),
    Mistake(
        "infer: images that are not there",
        "infer --bundle {b} {t}/absent.png",
        ("no such file or folder", "check the path"),
    ),
    Mistake(
        "infer: a trainer that does not run",
        "infer --bundle {b} --trainer tcp://127.0.0.1:9 --wait 0.1 {t}/flat",
        ("no trainer at", "connection refused", "--wait inf"),
        1,
    ),
    # A fleet.
    Mistake("fleet: the run without --run", "fleet {cloud}", ("Missing option '--run'",)),
    Mistake("fleet: a device's run", "fleet --run {device}", ("holds no run of a trainer", "check --run")),
    Mistake(
        "fleet: a device that is not there",
        "fleet --run {cloud} pause cam-9",
        ("no device named 'cam-9'", "no device has joined this run", "lists them"),
    ),
    Mistake("fleet: nobody to pause", "fleet --run {cloud} pause", ("fleet pause NAME", "adc-edge fleet --run")),
    # Other commands of a device.
    Mistake("doctor: not an address", "doctor --trainer nonsense", ("does not begin with tcp://", "tcp://HOST:PORT")),
    Mistake("doctor: no bundle there", "doctor --bundle {t}/absent", ("no bundle at", "cannot serve"), 1),
    Mistake("bench: no bundle there", "bench --bundle {t}/absent", ("no bundle at", "adc-edge export")),
    Mistake("bench: the table onto a directory", "bench --bundle {b} --json {t}/empty", ("it is a directory",)),
    Mistake("profile: no bundle there", "profile --bundle {t}/absent", ("no bundle at", "adc-edge export")),
    Mistake("profile: not an address", "profile --bundle {b} --trainer nonsense", ("tcp://HOST:PORT",)),
    Mistake(
        "profile: int8 with a trunk that trains", "profile --bundle {b} --compute int8", ("--compute int8", "frozen")
    ),
    Mistake(
        "profile: no trainer there",
        "profile --bundle {b} --trainer tcp://127.0.0.1:9 --wait 0.1",
        ("no trainer at tcp://127.0.0.1:9",),
        1,
    ),
    Mistake("demo: a report onto a directory", "demo --report {t}/empty", ("it is a directory, not a file",)),
]

HEAVY = [  # a host's commands, and what a device tells once torch is loaded
    _serve(
        "cifar10 that is not there", "--data cifar10:{t}/empty", "not found or corrupted", "download it there first"
    ),
    _serve("more frozen blocks than there are", "--freeze-first 9", "9 of 2 blocks", "0 to 1", "--trunk frozen"),
    _serve("CUDA where there is none", "--provider cuda", "without CUDAExecutionProvider", "cpu", "onnxruntime-gpu"),
    _serve("CUDA for the trunk where there is none", "--shim-device cuda", "docs/boards.md", "leave --shim-device out"),
    _serve("the bundle as the run", "--run {b}", "is a bundle", "a directory of its own", "choose another --run"),
    Mistake(
        "the trainer's run", f"{SERVE} --run {{cloud}}", ("a run of `trainer`", "choose another --run directory"), 1
    ),
    Mistake(
        "the trainer's run, to be forgotten",
        f"{SERVE} --run {{cloud}} --fresh",
        ("a run of `trainer`", "a run of `serve`", "choose another --run directory"),
        1,
    ),
    Mistake(
        "other options in a run", f"{SERVE} --run {{device}} --lr 1", ("optimizer lr was 0.0001, is 1.0", "--fresh"), 1
    ),
    Mistake(
        "a trainer on another machine's address",
        "trainer --bundle {b} --bind tcp://192.0.2.7:5700 --insecure",
        ("192.0.2.7 is no address of this machine", "ip address"),
    ),
    Mistake("a trainer on port 80000", "trainer --bundle {b} --bind tcp://127.0.0.1:80000", ("'80000'", "1 to 65535")),
    Mistake(
        "a trainer for the network without keys",
        "trainer --bundle {b} --bind tcp://0.0.0.0:5700",
        ("not loopback", "keys new"),
    ),
    Mistake(
        "a trainer without the head",
        "trainer --bundle {t}/headless --bind tcp://127.0.0.1:*",
        ("head.safetensors is missing", "copy or export the bundle again"),
    ),
    Mistake(
        "a trainer in a device's run",
        "trainer --bundle {b} --bind tcp://127.0.0.1:* --run {device}",
        ("a run of `serve`", "a run of `trainer`", "choose another --run"),
        1,
    ),
    Mistake(
        "a trainer with another bundle's run",
        "trainer --bundle {other} --bind tcp://127.0.0.1:* --run {cloud}",
        ("holds another run", "bundle was"),
        1,
    ),
    Mistake(
        "a trainer in another mode",
        "trainer --resume {cloud} --mode averaged",
        ("mode was", "is 'averaged", "--fresh"),
        1,
    ),
    Mistake(
        "merge: a trainer's run that has trained nothing",
        "merge --run-trainer {cloud} -o {t}/m",
        ("keeps no trained weights", "let the run come to its end"),
        1,
    ),
    Mistake(
        "evaluate: a partition without a number",
        f"{EVALUATE} --devices 2 --partition dirichlet:x",
        ("--partition dirichlet:x", "iid, dirichlet:X or by-class", "--partition dirichlet:0.3"),
    ),
    Mistake("a typo in the optimizer", "trainer --bundle {b} --optimizer adamm", ("'adamm' is not one of", "'adamw'")),
    Mistake(
        "no CUDA here",
        "trainer --bundle {b} --bind tcp://127.0.0.1:* --device cuda",
        ("torch finds no CUDA device", "--device auto"),
    ),
    Mistake(
        "a typo in the model",
        "export --model deit_tiny_patch16_225 --split 6 -o {t}/out",
        ("Unknown model", "do you mean deit_tiny_patch16_224"),
    ),
    Mistake(
        "a convolutional model",
        "export --model resnet18 --split 2 -o {t}/out",
        ("resnet18 is a ResNet", "a timm VisionTransformer", "deit_tiny_patch16_224"),
    ),
    Mistake("a split after the last block", f"{EXPORT} --split 12", ("--split 12", "1 to 11", "choose one")),
    Mistake("a typo in a model argument", f"{EXPORT} --model-arg dpeth=4", ("'dpeth'", "--model-arg")),
    Mistake("a model argument without =", f"{EXPORT} --model-arg depth", ("'depth'", "NAME=VALUE", "depth=4")),
    Mistake(
        "a size that patches do not divide", f"{EXPORT} --img-size 225", ("225", "a multiple of 16", "--img-size 240")
    ),
    Mistake("no weights there", f"{EXPORT} --weights {{t}}/absent.pth", ("is no file", "check the path")),
    Mistake("a bundle as weights", f"{EXPORT} --weights {{b}}", ("is a directory", "name the file: ")),
    Mistake("empty weights", f"{EXPORT} --weights {{t}}/nothing", ("is empty", "download or save it again")),
    Mistake(
        "a text as weights", f"{EXPORT} --weights {{t}}/text", ("begins with b'hello", "safetensors", "check what")
    ),
    Mistake(
        "another model's weights",
        f"{EXPORT} --weights {{b}}/head.safetensors",
        ("does not fit vit_tiny_patch16_224", "another width: 32", "--allow-missing"),
    ),
    Mistake(
        "another number of names",
        f"{EXPORT} --num-classes 3 --classes {{t}}/two.txt",
        ("--num-classes 3 and 2 names", "leave --num-classes out"),
    ),
    Mistake("names that are not there", f"{EXPORT} --classes {{t}}/absent.txt", ("no such file", "check the path")),
    Mistake(
        "a bundle that is there",
        "export --model vit_tiny_patch16_224 --split 3 -o {b}",
        ("holds a bundle already", "type --force"),
    ),
    Mistake(
        "a bundle onto a directory of photos",
        "export --model vit_tiny_patch16_224 --split 3 --force -o {t}/photos",
        ("is no bundle", "choose another -o"),
    ),
    Mistake(
        "a bundle onto a run",
        "export --model vit_tiny_patch16_224 --split 3 --force -o {device}",
        ("is no bundle", "choose another -o"),
    ),
    Mistake(
        "two kinds of ratio",
        f"{EXPORT} --ratio 0.1 --batch-ratio 0.5",
        ("--ratio 0.1, --batch-ratio 0.5", "either --ratio"),
    ),
    Mistake(
        "merge: no run there",
        "merge --run-device {t}/absent --run-trainer {cloud} -o {t}/m",
        ("no run directory", "check the path"),
        1,
    ),
    Mistake("merge: the two runs swapped", "merge --run-device {cloud} --run-trainer {device} -o {t}/m", ("run",), 1),
    Mistake("merge: a bundle as a run", "merge --run-device {b} --run-trainer {b} -o {t}/m", ("`serve --run`",), 1),
    Mistake(
        "merge: files instead of runs",
        "merge --run-device {b}/trunk.safetensors --run-trainer {cloud} -o {t}/m",
        ("no run directory", "check the path"),
        1,
    ),
    Mistake(
        "merge: onto a directory",
        "merge --run-device {device} --run-trainer {cloud} -o {t}/empty",
        ("it is a directory, not a file",),
    ),
    Mistake(
        "merge: onto a device",
        "merge --run-device {device} --run-trainer {cloud} -o /dev/full",
        ("a device or a pipe",),
    ),
    Mistake("calibrate: no image", "calibrate --bundle {b} --data digits --images 0", ("--images 0", "at least 8")),
    Mistake(
        "calibrate: more images than there are",
        "calibrate --bundle {b} --data digits --images 9999",
        ("1437 training images", "9999", "--images 1437"),
    ),
    Mistake(
        "calibrate: an option of another method",
        "calibrate --bundle {b} --data digits --method minmax --percentile 99",
        ("--percentile 99.0 with --method minmax", "leave one of them out"),
    ),
    Mistake("evaluate: no output", "evaluate --data digits", ("Missing option '-o'",)),
    Mistake("evaluate: a typo in a method", f"{EVALUATE} --methods adc,tpok", ("tpok", "topk", "for example")),
    Mistake(
        "evaluate: a ratio that is a word", f"{EVALUATE} --ratios 0.1,much", ("adc@much", "0.5x0.2", "for example")
    ),
    Mistake("evaluate: a ratio above 1", f"{EVALUATE} --ratios 2", ("--ratio 2.0", "in (0, 1]")),
    Mistake("evaluate: seeds that are words", f"{EVALUATE} --seeds a", ("--seeds a", "numbers", "--seeds 0,1,2")),
    Mistake("evaluate: no seed", f"{EVALUATE} --seeds ,", ("--seeds", "numbers", "--seeds 0,1,2")),
    Mistake("evaluate: a negative seed", f"{EVALUATE} --seeds -1", ("--seeds -1", "from 0 on", "--seeds 0,1,2")),
    Mistake("evaluate: budgets that are NaN", f"{EVALUATE} --budgets nan", ("--budgets nan", "shares above 0")),
    Mistake("evaluate: epochs that are NaN", f"{EVALUATE} --epochs nan", ("--epochs nan", "more than 0")),
    Mistake("evaluate: a typo in an augmentation", f"{EVALUATE} --augment blur", ("blur is unknown", "flip")),
    Mistake(
        "evaluate: a list of precisions for a rival",
        f"{EVALUATE} --setting topk@0.1/fp32,int8",
        ("topk has one each way", "for example topk@0.1/int8"),
    ),
    Mistake(
        "evaluate: another study's directory",
        "evaluate --data digits -o {t}/other-study --epochs 2",
        ("another study", "choose another"),
    ),
    Mistake(
        "privacy: a typo in a setting", "privacy -o {t}/p --setting nonsense", ("'nonsense'", "METHOD", "for example")
    ),
    Mistake("privacy: a typo in an augmentation", "privacy -o {t}/p --augment blur", ("blur is unknown", "flip")),
]
