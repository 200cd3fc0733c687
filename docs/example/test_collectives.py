def test_collectives(collectives_snapshot):
    collectives_snapshot("my_model:decoder", tp=8, budget={"all_reduce": 8})
