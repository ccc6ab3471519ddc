"""The one way to torchvision in this project: `from lib.data.vision import torchvision`.

torchvision's wheels are linked to CUDA. Next to a CPU-only torch its compiled operators cannot be
loaded, and its import then stops at "operator torchvision::nms does not exist", because it
describes two of them (`nms`, `qnms`) without looking whether they are there. Data sets, transforms
and classification networks call neither. So, only where the import stops there, the two are
declared by name and signature, without an implementation, and torchvision is imported again.
Calling one of them is then an error that says so; with a matching torchvision nothing here has any
effect.
"""

import torch


def __getattr__(name: str):
    """Imports torchvision at first use.

    It takes seconds, and most of the project does not need it.
    """
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library  # the declarations live as long as this object
        import torchvision
    globals()["torchvision"] = torchvision
    return torchvision
