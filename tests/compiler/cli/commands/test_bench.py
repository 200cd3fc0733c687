"""``commplan bench`` before there are ranks."""


def test_bench_needs_torchrun(run, factories, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    outcome = run("bench", f"{factories}:layers")
    assert outcome.code == 3
    assert "error: commplan bench runs on the ranks of the model" in outcome.err
    assert "torchrun --nproc-per-node 2 --no-python commplan bench" in outcome.err


def test_bench_takes_models_not_graphs(run, two_sums):
    outcome = run("bench", two_sums)
    assert outcome.code == 3
    assert "unknown model" in outcome.err
