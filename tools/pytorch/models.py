"""The models in PyTorch, with the names of the published code, to check weights against.

`ResNet` and `Transformation` are those of FCT (CVPR 2022) and FastFill (ICLR 2023); `ResNet` with
``classifier="linear"`` is also torchvision's and timm's; `ProjectionResNet` and `LCETransformation`
are AdvBCT's (CVPR 2023). Images are (N, 3, H, W). All models work with ``torch.jit.script`` and
``torch.jit.trace``.
"""

import torch
from torch import nn

from fct_jax import models

CLASSIFIERS = ("conv", "linear", "linear with bias", "none")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; only the bottleneck uses ``inner``."""

    def __init__(self, inputs: int, inner: int, out: int, stride: int, nonlin: bool):
        super().__init__()
        self.conv1 = _conv(inputs, out, 3, stride)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = _conv(out, out, 3)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(inputs, out, stride)
        self.nonlin = nonlin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.downsample(x)
        return torch.relu(y) if self.nonlin else y


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the stride is on the 3×3."""

    def __init__(self, inputs: int, inner: int, out: int, stride: int, nonlin: bool):
        super().__init__()
        self.conv1 = _conv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv(inner, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(inputs, out, stride)
        self.nonlin = nonlin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)) + self.downsample(x)
        return torch.relu(y) if self.nonlin else y


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def _shortcut(inputs: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == out:
        return nn.Sequential()
    return nn.Sequential(_conv(inputs, out, 1, stride), nn.BatchNorm2d(out))


class Trunk(nn.Module):
    """Images -> pooled features (N, D, 1, 1); ``arch`` is "resnet18", "wide_resnet50_2", …."""

    def __init__(
        self,
        arch: str,
        embedding_dim: int | None = None,
        last_nonlin: bool = True,
        small_stem: bool = False,
        width: int = 64,
        last_stride: int = 2,
    ):
        super().__init__()
        fixed = models.RESNETS[arch]
        expansion = fixed["expansion"]
        block = BasicBlock if expansion == 1 else Bottleneck
        self.conv1 = _conv(3, width, 3) if small_stem else _conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Sequential() if small_stem else nn.MaxPool2d(3, 2, 1)
        inputs, stages = width, []
        for stage, depth in enumerate(fixed["depths"]):
            planes = width * 2**stage
            inner = planes * fixed.get("base_width", 64) // 64
            blocks = []
            for index in range(depth):
                out, nonlin = planes * expansion, True
                if stage == 3 and index == depth - 1:
                    out, nonlin = embedding_dim or out, last_nonlin
                stride = (1, 2, 2, last_stride)[stage] if index == 0 else 1
                blocks.append(block(inputs, inner, out, stride, nonlin))
                inputs = out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dim = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return features for `ResNet`: TorchScript does not support ``super().forward``."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3), keepdim=True)


class ResNet(Trunk):
    """Images -> (logits (N, C), embedding (N, D, 1, 1)).

    ``classifier`` is one of `CLASSIFIERS`: a 1×1 convolution as in FCT, a linear layer with or
    without bias as in torchvision and timm, or none (the logits are then (N, 0)).
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        embedding_dim: int | None = 128,
        last_nonlin: bool = True,
        normalize_embedding: bool = False,
        small_stem: bool = False,
        width: int = 64,
        last_stride: int = 2,
        classifier: str = "conv",
    ):
        super().__init__(arch, embedding_dim, last_nonlin, small_stem, width, last_stride)
        self.normalize_embedding = normalize_embedding
        self.flat = classifier != "conv"
        if classifier == "none":
            self.fc = nn.Sequential()
        elif classifier == "conv":
            self.fc = _conv(self.dim, num_classes, 1)
        else:
            self.fc = nn.Linear(self.dim, num_classes, bias=classifier == "linear with bias")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.features(x)
        if self.normalize_embedding:
            embedding = nn.functional.normalize(embedding, dim=1)
        logits = self.fc(embedding.flatten(1) if self.flat else embedding)
        return logits.flatten(1), embedding


class FeatureExtractor(nn.Module):
    """Images -> embedding (N, D, 1, 1): the form in which FCT saves a backbone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)[1]


class ProjectionResNet(nn.Module):
    """Images -> embedding (N, D), as AdvBCT's model returns it in inference."""

    def __init__(
        self,
        arch: str,
        num_classes: int,
        embedding_dim: int = 256,
        small_stem: bool = False,
        width: int = 64,
        last_stride: int = 2,
    ):
        super().__init__()
        self.convnet = Trunk(arch, small_stem=small_stem, width=width, last_stride=last_stride)
        self.projection_dim = nn.Linear(self.convnet.dim, embedding_dim, bias=False)
        self.bn = nn.BatchNorm1d(embedding_dim)
        self.projection_cls = nn.Linear(embedding_dim, num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.projection_dim(self.convnet(x).flatten(1)))


class Layer(nn.Module):
    """1×1 convolution, BatchNorm, ReLU; a transformation's last layer is only a convolution."""

    def __init__(self, inputs: int, outputs: int, last: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=last)
        self.normalizer = nn.Sequential() if last else nn.BatchNorm2d(outputs)
        self.activation = nn.Sequential() if last else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalizer(self.conv(x)))


class Transformation(nn.Module):
    """old (N, do, 1, 1), side (N, ds, 1, 1) -> (N, dn, 1, 1), or (N, dn + 1) with uncertainty."""

    def __init__(
        self,
        old_dim: int,
        embedding_dim: int,
        side_dim: int,
        inner_dim: int = 2048,
        uncertainty: bool = False,
    ):
        super().__init__()
        self.p1 = nn.Sequential(Layer(old_dim, 2 * old_dim), Layer(2 * old_dim, 2 * embedding_dim))
        self.p2 = nn.Sequential(
            Layer(side_dim, 2 * side_dim), Layer(2 * side_dim, 2 * embedding_dim)
        )
        self.mixer = nn.Sequential(
            Layer(4 * embedding_dim, inner_dim),
            Layer(inner_dim, inner_dim),
            Layer(inner_dim, embedding_dim, last=True),
        )
        self.uncertainty_head = nn.Linear(embedding_dim, 1) if uncertainty else None

    def forward(self, old: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        x = self.mixer(torch.cat([self.p1(old), self.p2(side)], 1))
        if self.uncertainty_head is not None:
            features = x.flatten(1)
            return torch.cat([features, self.uncertainty_head(features)], 1)
        return x


class LCETransformation(nn.Module):
    """AdvBCT's version of LCE's transformation: (N, D) -> (N, D) by ``blocks`` residual blocks."""

    def __init__(self, dim: int, blocks: int, inner: int = 16):
        super().__init__()
        self.rbt = nn.ModuleList(_lce_block(dim, inner) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.rbt:
            x = block(x) + x
        return x


def _lce_block(dim: int, inner: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((dim, inner), (inner, inner), (inner, dim)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class ModelWithTransformation(nn.Module):
    """Images -> (N, D): AdvBCT's old model, followed by LCE's transformation of its embeddings."""

    def __init__(self, base: nn.Module, transformation: nn.Module):
        super().__init__()
        self.base = base
        self.T = transformation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.T(self.base(x))


class TransformedOldModel(nn.Module):
    """Images -> transformed embeddings: FCT's old model, side model and transformation in one."""

    def __init__(self, old_model: nn.Module, side_info_model: nn.Module, transformation: nn.Module):
        super().__init__()
        self.old_model = old_model
        self.side_info_model = side_info_model
        self.transformation = transformation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transformation(self.old_model(x), self.side_info_model(x))


def build(description: dict, classifier: str = "conv") -> nn.Module:
    """Return the module for a run's ``model.json``, in inference mode; it returns only embeddings.

    Args:
      description: the description of a backbone or a transformation.
      classifier: the form of a `ResNet`'s classifier; see `ResNet`.
    """
    name, kwargs = description["name"], description["kwargs"]
    kwargs = {key: value for key, value in kwargs.items() if key != "dtype"}
    if name == "lce":
        module = LCETransformation(description["dim"], **kwargs)
    elif description["kind"] == "transformation":
        dims = {"old_dim": description["old_dim"], "side_dim": description["side_dim"]}
        module = Transformation(**dims, **kwargs, uncertainty=name == "fastfill")
    elif name.endswith("_projection"):
        module = ProjectionResNet(name.removesuffix("_projection"), **kwargs)
    else:
        classifier = classifier if kwargs.pop("has_classifier", True) else "none"
        module = ResNet(name, **kwargs, classifier=classifier)
    return module.eval()
