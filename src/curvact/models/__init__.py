"""Networks that take an activation: architectures, checkpoints, transfer, models of others."""

from curvact.models.checkpoint import load_checkpoint, save_checkpoint
from curvact.models.foreign import logits_of
from curvact.models.hashing import model_hash
from curvact.models.hub import from_pretrained, save_pretrained
from curvact.models.interchange import from_robustbench, model_from_robustbench, to_robustbench
from curvact.models.layers import ActivationSource, Common, Frame, Normalize, Scope, initialize, prepare
from curvact.models.learned import (
    LearnedActivation,
    extract_activation,
    insert_activation,
    read_learned,
    write_learned,
)
from curvact.models.mini_resnet import MiniResNet
from curvact.models.mlp import MLP
from curvact.models.outputs import select_outputs
from curvact.models.preact_resnet import PreActResNet
from curvact.models.registry import MODELS, arguments_of, build, register_model
from curvact.models.resnet import ResNet
from curvact.models.small_cnn import SmallCNN
from curvact.models.vgg import VGG
from curvact.models.vit import ViT
from curvact.models.wide_resnet import WideResNet
from curvact.models.zoo import ZOO, ZooEntry, from_zoo, zoo_weights

__all__ = [
    "MLP",
    "MODELS",
    "VGG",
    "ZOO",
    "ActivationSource",
    "Common",
    "Frame",
    "LearnedActivation",
    "MiniResNet",
    "Normalize",
    "PreActResNet",
    "ResNet",
    "Scope",
    "SmallCNN",
    "ViT",
    "WideResNet",
    "ZooEntry",
    "arguments_of",
    "build",
    "extract_activation",
    "from_pretrained",
    "from_robustbench",
    "from_zoo",
    "initialize",
    "insert_activation",
    "load_checkpoint",
    "logits_of",
    "model_from_robustbench",
    "model_hash",
    "prepare",
    "read_learned",
    "register_model",
    "save_checkpoint",
    "save_pretrained",
    "select_outputs",
    "to_robustbench",
    "write_learned",
    "zoo_weights",
]
