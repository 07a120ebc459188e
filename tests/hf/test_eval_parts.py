"""What an evaluation is made of: texts, windows, likelihoods, intervals, and the option that takes several files."""

import hashlib
import math

import click
import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from codegemm.cli import options  # noqa: E402
from codegemm.errors import CheckpointError  # noqa: E402
from codegemm.hf.evaluation import bootstrap, likelihood, report, results, texts  # noqa: E402
from codegemm.hf.evaluation.results import Cosine, Estimate, Sums  # noqa: E402
from codegemm.hf.evaluation.texts import Around, Text, Tokens  # noqa: E402
from codegemm.hf.evaluation.windows import Cut, Window, check_length, cut_for, windows_of  # noqa: E402


def text(content):
    return Text("a.txt", content, "")


def test_windows_side_by_side():
    """The last one is shorter; the first token of each is predicted only from a special one before it."""
    assert windows_of(10, Cut(4, 4), False) == [Window(0, 4, 1), Window(4, 8, 5), Window(8, 10, 9)]
    assert windows_of(10, Cut(4, 4), True) == [Window(0, 4, 0), Window(4, 8, 4), Window(8, 10, 8)]
    assert windows_of(9, Cut(4, 4), False) == [Window(0, 4, 1), Window(4, 8, 5)]  # one token alone predicts nothing
    assert windows_of(3, Cut(4, 4), False) == [Window(0, 3, 1)]


def test_windows_that_overlap():
    """The last `stride` tokens of each window behind the first one count."""
    found = windows_of(13, Cut(6, 2), False)
    assert [(each.begin, each.end) for each in found] == [(0, 6), (2, 8), (4, 10), (6, 12), (8, 13)]
    assert [each.predictions for each in found] == [5, 2, 2, 2, 1]


@pytest.mark.parametrize("begun", [False, True])
def test_every_token_counts_once(begun, rng):
    for _ in range(100):
        window = int(rng.integers(2, 9))
        stride, length = int(rng.integers(1, window + 1)), int(rng.integers(2, 40))
        found = windows_of(length, Cut(window, stride), begun)
        counted = [place for each in found for place in range(each.first, each.end)]
        assert len(set(counted)) == len(counted)
        unpredicted = set() if begun else {each.begin for each in found if stride == window or not each.begin}
        alone = {length - 1} if stride == window and length % window == 1 else set()
        assert set(range(length)) - set(counted) == unpredicted | alone
        for each in found:
            assert 2 <= each.end - each.begin <= window
            if each.begin and stride < window:
                assert each.first - each.begin >= window - stride  # what came before it, at least


def test_the_default_window():
    assert cut_for(None, None, None, Around()) == Cut(512, 512)
    assert cut_for(None, None, 64, Around()) == Cut(64, 64)
    assert cut_for(None, 7, 512, Around((1,), (2,))) == Cut(510, 7)
    assert cut_for(8, None, 8, Around()) == Cut(8, 8)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((1, None, 64, Around()), "window 1: must have 2 tokens or more"),
        ((65, None, 64, Around()), "window 65: the model has 64 positions: 64 is the most"),
        ((64, None, 64, Around((1,))), "window 64: .* 64 positions, of which 1 special token take some: 63 is the"),
        ((8, 9, None, Around()), "stride 9: must be 1 to 8"),
        ((8, 0, None, Around()), "stride 0: must be 1 to 8"),
    ],
)
def test_windows_that_can_not_be(asked, message):
    with pytest.raises(ValueError, match=message):
        cut_for(*asked)


def test_a_text_shorter_than_a_window():
    with pytest.raises(ValueError, match=r"a\.txt: has 3 tokens, fewer than a window of 4: a window of 3 would do"):
        check_length([Tokens(text("a"), [1, 2, 3], 3)], 4)
    with pytest.raises(ValueError, match=r"has 3 tokens \(of 9, by the limit\)"):
        check_length([Tokens(text("a"), [1, 2, 3], 9)], 4)


def test_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffGrüße\r\n".encode())
    [found] = texts.read([path])
    assert found == Text(str(path), "Grüße\r\n", hashlib.sha256(path.read_bytes()).hexdigest())
    assert texts.read({"b": "é"}) == [Text("b", "é", hashlib.sha256("é".encode()).hexdigest())]


def test_files_that_can_not_be_read(tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=message) as caught:
            texts.read([path])
        assert isinstance(caught.value, CheckpointError) or "empty" in message

    path = tmp_path / "a.txt"
    refused(path, r"a\.txt: no such file")
    refused(tmp_path, "is a folder: must be a file")
    path.write_bytes(b"")
    refused(path, r"a\.txt: is empty")
    path.write_bytes(b"abc\xff")
    refused(path, r"a\.txt: must be text in UTF-8, which byte 3 is not")
    with pytest.raises(ValueError, match="there are none"):
        texts.read([])
    with pytest.raises(TypeError, match=r"texts 'a\.txt': must be a list"):
        texts.read("a.txt")


def test_tokens(tokenizer):
    assert texts.tokenize(text("a0 a1 a2"), tokenizer, 2).ids == [5, 6]
    assert texts.tokenize(text("a0 a1 a2"), tokenizer, 2).total == 3
    with pytest.raises(ValueError, match=r"a\.txt: has 1 tokens, must have 2 or more"):
        texts.tokenize(text("a0"), tokenizer)
    assert texts.around(tokenizer) == Around()


def test_special_tokens(tokenizer):
    """What the tokenizer puts around a text."""
    import copy

    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s> </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert texts.around(other) == Around((1,), (2, 2))
    assert texts.tokenize(text("a0 a1"), other).ids == [5, 6]


def test_tokens_that_differ(tokenizer):
    read = [texts.tokenize(text("a0 a1"), tokenizer)]

    def made(ids):
        return lambda content, **options: {"input_ids": ids}

    texts.check_same(read, made([5, 6]), "base")
    with pytest.raises(ValueError, match=r"base: its tokenizer makes 3 tokens of a\.txt, not 2"):
        texts.check_same(read, made([5, 6, 7]), "base")
    with pytest.raises(ValueError, match=r"base: its tokenizer makes 7, not 6, of token 1 of a\.txt"):
        texts.check_same(read, made([5, 7]), "base")
    texts.check_vocabulary(read, Around(), 7, "model")
    with pytest.raises(ValueError, match=r"a\.txt: has the token id 6, and the embedding of model has 6 rows"):
        texts.check_vocabulary(read, Around(), 6, "model")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_numbers_of_logits(dtype, rng, monkeypatch):
    """In float64 whatever the logits are in, and whatever the chunks."""
    monkeypatch.setattr(likelihood, "_NUMBERS", 40)
    own, base = (torch.from_numpy(30 * rng.standard_normal((9, 17))).to(getattr(torch, dtype)) for _ in range(2))
    targets = torch.from_numpy(rng.integers(0, 17, 9))
    found = likelihood.per_token(own, targets, base)
    p, q = (np.exp(each.double().numpy() - each.double().numpy().max(1, keepdims=True)) for each in (base, own))
    p, q = (each / each.sum(1, keepdims=True) for each in (p, q))
    at = (np.arange(9), targets.numpy())
    assert np.allclose(found.nll, -np.log(q[at]), rtol=1e-12)
    assert np.allclose(found.base_nll, -np.log(p[at]), rtol=1e-12)
    assert np.allclose(found.kl, (p * (np.log(p) - np.log(q))).sum(1), rtol=1e-12)
    assert np.array_equal(found.agreed, own.argmax(1) == base.argmax(1))
    itself = likelihood.per_token(own, targets, own.clone())
    assert not itself.kl.any()
    assert itself.agreed.all()


def test_logits_that_are_no_numbers():
    good, bad = torch.zeros(3, 4), torch.zeros(3, 4)
    bad[2, 1] = math.nan
    targets = torch.zeros(3, dtype=torch.long)
    for pair, of_base in (((bad, good), False), ((good, bad), True)):
        with pytest.raises(likelihood.NotFinite) as caught:
            likelihood.per_token(pair[0], targets, pair[1])
        assert caught.value.of_base == of_base


def windows(rng, count, spread=1.0):
    """Of 100 tokens each, about 2 nats a token by the base and 2.5 by the model, windows of which differ together."""
    base = 200 + 30 * spread * rng.standard_normal(count)
    nll = base + 50 + rng.standard_normal(count)
    return [Sums(100 * n, 100 * n + 100, 100, float(own), float(other), 10.0, 80.0) for n, (own, other) in
            enumerate(zip(nll, base))]  # fmt: skip


TOKENS = Tokens(text("a"), [0] * 5000, 5000)


def test_intervals(rng):
    """Deterministic by their seed, around the value, as wide as theory has it; of a ratio, by pairs, much narrower."""
    sums = windows(rng, 50)
    found = results.likelihood(TOKENS, sums, 0)
    assert found == results.likelihood(TOKENS, sums, 0)
    assert found.perplexity != results.likelihood(TOKENS, sums, 1).perplexity
    logs = [math.log(each) for each in (found.perplexity.low, found.perplexity.value, found.perplexity.high)]
    assert logs[0] < logs[1] < logs[2]
    error = np.std([each.nll / 100 for each in sums]) / math.sqrt(50)
    assert logs[2] - logs[0] == pytest.approx(2 * 1.96 * error, rel=0.2)
    width = math.log(found.ratio.high / found.ratio.low)
    assert width < (logs[2] - logs[0]) / 10
    assert found.ratio.value == pytest.approx(found.perplexity.value / found.base_perplexity.value)
    assert (found.kl, found.agreement) == (Estimate(0.1, 0.1, 0.1), Estimate(0.8, 0.8, 0.8))
    assert found.predictions == 5000


def test_intervals_cover(rng):
    """About 95 in 100 of them have the truth, fewer for so few windows."""
    held = 0
    for seed in range(200):
        drawn = bootstrap.resample(rng.standard_normal((40, 1)), seed)
        low, high = bootstrap.interval(drawn[:, 0])
        held += low <= 0 <= high
    assert 168 <= held <= 199


def test_one_window_has_no_interval(rng):
    found = results.likelihood(TOKENS, windows(rng, 1), 0)
    assert found.perplexity.low is found.ratio.high is None
    similar = results.similarity(TOKENS, [Cosine(0, 5, 0.5)], 0)
    assert (similar.cosine, similar.least) == (Estimate(0.5), 0.5)


def test_many_windows(rng, monkeypatch):
    """Drawn in parts that fit into memory; what is drawn differs, the interval hardly."""
    sums = rng.standard_normal((500, 2)) + 5
    whole = bootstrap.interval(bootstrap.resample(sums, 0)[:, 1])
    monkeypatch.setattr(bootstrap, "_BLOCK", 3000)
    drawn = bootstrap.resample(sums, 0)
    assert drawn.shape == (bootstrap.RESAMPLES, 2)
    assert bootstrap.interval(drawn[:, 1]) == pytest.approx(whole, rel=0.01)


def test_perplexities_without_bound():
    found = results.likelihood(TOKENS, [Sums(0, 9, 1, 1e4), Sums(9, 18, 1, 1e4)], 0)
    assert found.perplexity == Estimate(math.inf, math.inf, math.inf)


@pytest.mark.parametrize(
    ("value", "told"),
    [(12.7169, "12.72"), (145392.6, "145,393"), (1.0, "1.000"), (2.5e8, "2.5e+08"), (math.inf, "inf"), (0.0, "0.000"),
     (0.09772, "0.09772"), (1e-9, "0.000000")],
)  # fmt: skip
def test_numbers_for_people(value, told):
    assert report.number(value) == told


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["m", "--text", "a", "b", "--flag", "--text", "c"], ("m", ("a", "b", "c"), True)),
        (["--text", "a", "b", "--", "m"], ("m", ("a", "b"), False)),
        (["--flag", "m", "--text=a", "b", "-"], ("m", ("a", "b", "-"), True)),
        (["m", "-t", "a", "b", "--flag"], ("m", ("a", "b"), True)),
        (["m"], ("m", (), False)),
    ],
)
def test_an_option_of_several_words(arguments, found):
    @click.command()
    @click.argument("model")
    @click.option("--text", "-t", "texts", cls=options.Several)
    @click.option("--flag", is_flag=True)
    def command(model, texts, flag):
        seen.append((model, texts, flag))

    seen = []
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert seen == [found]


def test_an_option_of_several_words_needs_one():
    @click.command()
    @click.option("--text", cls=options.Several, type=click.INT, required=True)
    def command(text):
        pass

    for arguments, message in (
        ([], "Missing option"),
        (["--text"], "requires an argument"),
        (["--text", "1", "b"], "'b'"),
    ):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 2
        assert message in done.output
