"""Curated models, one factory function per name. `wsl_<timm name>` works for every other timm model as well."""

from __future__ import annotations

from minmax_entropy.factory import build_model, register_model
from minmax_entropy.wsl import WSLModel

# ResNet (He et al., CVPR 2016)


@register_model
def wsl_resnet18(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet18 (ResNet); keywords as in `create_model`."""
    return build_model("resnet18", pretrained, **kwargs)


@register_model
def wsl_resnet34(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet34 (ResNet); keywords as in `create_model`."""
    return build_model("resnet34", pretrained, **kwargs)


@register_model
def wsl_resnet50(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet50 (ResNet); keywords as in `create_model`."""
    return build_model("resnet50", pretrained, **kwargs)


@register_model
def wsl_resnet101(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet101 (ResNet); keywords as in `create_model`."""
    return build_model("resnet101", pretrained, **kwargs)


# ResNet-D (He et al., CVPR 2019)


@register_model
def wsl_resnet18d(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet18d (ResNet-D); keywords as in `create_model`."""
    return build_model("resnet18d", pretrained, **kwargs)


@register_model
def wsl_resnet34d(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet34d (ResNet-D); keywords as in `create_model`."""
    return build_model("resnet34d", pretrained, **kwargs)


@register_model
def wsl_resnet50d(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet50d (ResNet-D); keywords as in `create_model`."""
    return build_model("resnet50d", pretrained, **kwargs)


@register_model
def wsl_resnet101d(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet101d (ResNet-D); keywords as in `create_model`."""
    return build_model("resnet101d", pretrained, **kwargs)


# ResNet-S: three-layer stem of 64 channels, the backbones of the authors' implementation


@register_model
def wsl_resnet50s(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet50s (ResNet-S); keywords as in `create_model`."""
    return build_model("resnet50s", pretrained, **kwargs)


@register_model
def wsl_resnet101s(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's resnet101s (ResNet-S); keywords as in `create_model`."""
    return build_model("resnet101s", pretrained, **kwargs)


# ConvNeXt (Liu et al., CVPR 2022)


@register_model
def wsl_convnext_atto(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's convnext_atto (ConvNeXt); keywords as in `create_model`."""
    return build_model("convnext_atto", pretrained, **kwargs)


@register_model
def wsl_convnext_nano(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's convnext_nano (ConvNeXt); keywords as in `create_model`."""
    return build_model("convnext_nano", pretrained, **kwargs)


@register_model
def wsl_convnext_tiny(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's convnext_tiny (ConvNeXt); keywords as in `create_model`."""
    return build_model("convnext_tiny", pretrained, **kwargs)


@register_model
def wsl_convnext_small(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's convnext_small (ConvNeXt); keywords as in `create_model`."""
    return build_model("convnext_small", pretrained, **kwargs)


@register_model
def wsl_convnext_base(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's convnext_base (ConvNeXt); keywords as in `create_model`."""
    return build_model("convnext_base", pretrained, **kwargs)


# EfficientNet (Tan and Le, ICML 2019; v2 ICML 2021)


@register_model
def wsl_efficientnet_b0(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's efficientnet_b0 (EfficientNet); keywords as in `create_model`."""
    return build_model("efficientnet_b0", pretrained, **kwargs)


@register_model
def wsl_efficientnet_b1(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's efficientnet_b1 (EfficientNet); keywords as in `create_model`."""
    return build_model("efficientnet_b1", pretrained, **kwargs)


@register_model
def wsl_efficientnet_b2(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's efficientnet_b2 (EfficientNet); keywords as in `create_model`."""
    return build_model("efficientnet_b2", pretrained, **kwargs)


@register_model
def wsl_tf_efficientnetv2_s(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's tf_efficientnetv2_s (EfficientNet); keywords as in `create_model`."""
    return build_model("tf_efficientnetv2_s", pretrained, **kwargs)


# MobileNet (Howard et al., ICCV 2019; v4 ECCV 2024)


@register_model
def wsl_mobilenetv3_small_100(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's mobilenetv3_small_100 (MobileNet); keywords as in `create_model`."""
    return build_model("mobilenetv3_small_100", pretrained, **kwargs)


@register_model
def wsl_mobilenetv3_large_100(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's mobilenetv3_large_100 (MobileNet); keywords as in `create_model`."""
    return build_model("mobilenetv3_large_100", pretrained, **kwargs)


@register_model
def wsl_mobilenetv4_conv_small(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's mobilenetv4_conv_small (MobileNet); keywords as in `create_model`."""
    return build_model("mobilenetv4_conv_small", pretrained, **kwargs)


# RegNet (Radosavovic et al., CVPR 2020)


@register_model
def wsl_regnetx_008(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's regnetx_008 (RegNet); keywords as in `create_model`."""
    return build_model("regnetx_008", pretrained, **kwargs)


@register_model
def wsl_regnety_008(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's regnety_008 (RegNet); keywords as in `create_model`."""
    return build_model("regnety_008", pretrained, **kwargs)


@register_model
def wsl_regnety_016(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's regnety_016 (RegNet); keywords as in `create_model`."""
    return build_model("regnety_016", pretrained, **kwargs)


@register_model
def wsl_regnety_032(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's regnety_032 (RegNet); keywords as in `create_model`."""
    return build_model("regnety_032", pretrained, **kwargs)


# ViT (Dosovitskiy et al., ICLR 2021)


@register_model
def wsl_vit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's vit_tiny_patch16_224 (ViT); keywords as in `create_model`."""
    return build_model("vit_tiny_patch16_224", pretrained, **kwargs)


@register_model
def wsl_vit_small_patch16_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's vit_small_patch16_224 (ViT); keywords as in `create_model`."""
    return build_model("vit_small_patch16_224", pretrained, **kwargs)


@register_model
def wsl_vit_base_patch16_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's vit_base_patch16_224 (ViT); keywords as in `create_model`."""
    return build_model("vit_base_patch16_224", pretrained, **kwargs)


# DeiT (Touvron et al., ICML 2021; DeiT III ECCV 2022)


@register_model
def wsl_deit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's deit_tiny_patch16_224 (DeiT); keywords as in `create_model`."""
    return build_model("deit_tiny_patch16_224", pretrained, **kwargs)


@register_model
def wsl_deit_small_patch16_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's deit_small_patch16_224 (DeiT); keywords as in `create_model`."""
    return build_model("deit_small_patch16_224", pretrained, **kwargs)


@register_model
def wsl_deit3_small_patch16_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's deit3_small_patch16_224 (DeiT); keywords as in `create_model`."""
    return build_model("deit3_small_patch16_224", pretrained, **kwargs)


# DINOv2 (Oquab et al., 2023; registers Darcet et al., 2023)


@register_model
def wsl_vit_small_patch14_dinov2(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's vit_small_patch14_dinov2 (DINOv2); keywords as in `create_model`."""
    return build_model("vit_small_patch14_dinov2", pretrained, **kwargs)


@register_model
def wsl_vit_base_patch14_dinov2(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's vit_base_patch14_dinov2 (DINOv2); keywords as in `create_model`."""
    return build_model("vit_base_patch14_dinov2", pretrained, **kwargs)


@register_model
def wsl_vit_small_patch14_reg4_dinov2(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's vit_small_patch14_reg4_dinov2 (DINOv2); keywords as in `create_model`."""
    return build_model("vit_small_patch14_reg4_dinov2", pretrained, **kwargs)


# Swin (Liu et al., ICCV 2021)


@register_model
def wsl_swin_tiny_patch4_window7_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's swin_tiny_patch4_window7_224 (Swin); keywords as in `create_model`."""
    return build_model("swin_tiny_patch4_window7_224", pretrained, **kwargs)


@register_model
def wsl_swin_small_patch4_window7_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's swin_small_patch4_window7_224 (Swin); keywords as in `create_model`."""
    return build_model("swin_small_patch4_window7_224", pretrained, **kwargs)


@register_model
def wsl_swin_base_patch4_window7_224(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's swin_base_patch4_window7_224 (Swin); keywords as in `create_model`."""
    return build_model("swin_base_patch4_window7_224", pretrained, **kwargs)


# timm's tiny test models, for tests and for trying things out


@register_model
def wsl_test_resnet(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's test_resnet (a tiny test model); keywords as in `create_model`."""
    return build_model("test_resnet", pretrained, **kwargs)


@register_model
def wsl_test_convnext(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's test_convnext (a tiny test model); keywords as in `create_model`."""
    return build_model("test_convnext", pretrained, **kwargs)


@register_model
def wsl_test_efficientnet(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's test_efficientnet (a tiny test model); keywords as in `create_model`."""
    return build_model("test_efficientnet", pretrained, **kwargs)


@register_model
def wsl_test_vit(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's test_vit (a tiny test model); keywords as in `create_model`."""
    return build_model("test_vit", pretrained, **kwargs)


@register_model
def wsl_test_byobnet(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's test_byobnet (a tiny test model); keywords as in `create_model`."""
    return build_model("test_byobnet", pretrained, **kwargs)


@register_model
def wsl_test_nfnet(pretrained: bool = False, **kwargs) -> WSLModel:
    """Create a localization model with timm's test_nfnet (a tiny test model); keywords as in `create_model`."""
    return build_model("test_nfnet", pretrained, **kwargs)
