"""Small pictures of figures; a warning is an error."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest

from lib import plots

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("figure_style")]


def test_a_small_png_is_the_figure_in_few_colours_and_fewer_bytes():
    fig, ax = plt.subplots()
    for shade in np.linspace(0, 1, 75):  # as many fine lines as Figure 1 of the AL2 paper has
        ax.plot(np.linspace(1, 0.1, 50) * (1 - shade / 2), lw=0.9, color=plt.cm.viridis(shade))
    whole = BytesIO()
    fig.savefig(whole, format="png", bbox_inches="tight", dpi=80)
    small = plots.small_png(fig)
    assert not plt.fignum_exists(fig.number) and len(small.data) < len(whole.getvalue()) / 2
    one, other = (
        np.asarray(PIL.Image.open(file).convert("RGB"), float)
        for file in (whole, BytesIO(small.data))
    )
    assert one.shape == other.shape and np.abs(one - other).mean() < 1
