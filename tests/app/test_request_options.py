"""Options are read from the texts of a query or of a command line."""

from app.options import UPSAMPLINGS, LossOptions, parse


def test_options_are_read_from_texts():
    texts = [("ignore_index", "0, 255,-1"), ("temperature", "2e0"), ("label_smoothing", ".5")]
    options = parse(LossOptions, texts)
    assert options.ignore_index == (0, 255, -1)
    assert options.temperature == 2
    assert options.label_smoothing == 0.5
    assert parse(LossOptions, [("ignore_index", "none")]).ignore_index == ()


def test_upsampling_has_the_names_of_the_contract():
    assert tuple(UPSAMPLINGS) == ("none", "bilinear", "bilinear_aligned", "fcn")
