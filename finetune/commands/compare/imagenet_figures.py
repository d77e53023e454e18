"""Tables of published ImageNet error rates: of timm's weights, and of classic architectures."""

from collections.abc import Mapping

_MATCONVNET = (
    "MatConvNet's model zoo (https://www.vlfeat.org/matconvnet/pretrained/): {}, single centre crop"
)
_TF_SLIM = "TF-Slim (https://github.com/tensorflow/models/tree/master/research/slim): {}"

ARCHITECTURE_FIGURES: Mapping[str, tuple[float, float, str]] = {
    # not those of the papers: He et al. 2016 give 24.7/7.8 for ResNet-50 and 23.6/7.1 for -101
    "resnet50": (24.6, 7.7, _MATCONVNET.format("resnet-50-dag")),
    "resnet101": (23.4, 7.0, _MATCONVNET.format("resnet-101-dag")),
    "resnet152": (23.0, 6.7, _MATCONVNET.format("resnet-152-dag")),
    "vgg16": (28.5, 9.9, _MATCONVNET.format("vgg-verydeep-16")),
    "vgg19": (28.7, 9.9, _MATCONVNET.format("vgg-verydeep-19")),
    "googlenet": (34.2, 12.9, _MATCONVNET.format("googlenet-dag")),
    "alexnet": (42.6, 19.6, _MATCONVNET.format("caffe-alex")),
    "inception_resnet_v2": (19.6, 4.7, _TF_SLIM.format("inception_resnet_v2_2016_08_30")),
}
"""Architecture to top-1 and top-5 error of one published training, in percent, and the source."""

TIMM_SOURCE = "timm's results-imagenet.csv"
"""https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv
(commit 0173a139a2c66db3a41ebfe1d8ac4fb02483642e)."""

# timm's weights, top-1 and top-5 error in percent, side of the evaluated image in pixels
_TIMM_ROWS = """
resnet18.a1_in1k 26.842 8.974 288
resnet18.a2_in1k 27.628 9.404 288
resnet18.a3_in1k 31.746 11.824 224
resnet18.fb_ssl_yfcc100m_ft_in1k 27.406 8.582 224
resnet18.fb_swsl_ig1b_ft_in1k 26.718 8.268 224
resnet18.gluon_in1k 29.162 10.246 224
resnet18.tv_in1k 30.240 10.930 224
resnet34.a1_in1k 22.082 6.234 288
resnet34.a2_in1k 22.842 6.726 288
resnet34.a3_in1k 27.030 8.892 224
resnet34.bt_in1k 23.520 6.646 288
resnet34.gluon_in1k 25.422 8.016 224
resnet50.a1_in1k 18.786 4.898 288
resnet50.a1h_in1k 19.324 4.694 224
resnet50.a2_in1k 19.228 5.012 288
resnet50.a3_in1k 21.952 6.220 224
resnet50.am_in1k 21.002 5.604 224
resnet50.b1k_in1k 19.294 4.568 288
resnet50.b2k_in1k 19.546 4.682 288
resnet50.bt_in1k 20.360 5.108 288
resnet50.c1_in1k 19.088 4.448 288
resnet50.c2_in1k 19.130 4.466 288
resnet50.d_in1k 19.028 4.570 288
resnet50.fb_ssl_yfcc100m_ft_in1k 20.766 5.174 224
resnet50.fb_swsl_ig1b_ft_in1k 18.818 4.008 224
resnet50.gluon_in1k 22.420 6.282 224
resnet50.ra_in1k 20.164 5.034 288
resnet50.ram_in1k 20.024 4.948 288
resnet50.tv2_in1k 19.150 4.566 224
resnet50.tv_in1k 23.870 7.142 224
resnet101.a1_in1k 17.678 4.368 288
resnet101.a1h_in1k 17.222 3.690 288
resnet101.a2_in1k 17.764 4.270 288
resnet101.a3_in1k 20.186 5.394 224
resnet101.gluon_in1k 20.690 5.478 224
resnet101.tv2_in1k 18.110 4.232 224
resnet101.tv_in1k 22.624 6.458 224
resnet152.a1_in1k 17.268 4.280 288
resnet152.a1h_in1k 16.550 3.462 288
resnet152.a2_in1k 17.392 4.248 288
resnet152.a3_in1k 19.454 5.000 224
resnet152.gluon_in1k 20.306 5.264 224
resnet152.tv2_in1k 17.712 3.996 224
resnet152.tv_in1k 21.678 5.952 224
resnext50_32x4d.a1_in1k 18.534 4.826 288
resnext50_32x4d.a1h_in1k 17.986 4.066 288
resnext50_32x4d.a2_in1k 18.696 4.904 288
resnext50_32x4d.tv2_in1k 18.818 4.660 224
resnext50_32x4d.tv_in1k 22.382 6.304 224
wide_resnet50_2.racm_in1k 17.720 3.936 288
wide_resnet50_2.tv2_in1k 18.394 4.238 224
wide_resnet50_2.tv_in1k 21.520 5.914 224
regnety_016.tv2_in1k 19.332 4.670 224
vgg11.tv_in1k 30.978 11.376 224
vgg11_bn.tv_in1k 29.618 10.192 224
vgg13.tv_in1k 30.068 10.750 224
vgg13_bn.tv_in1k 28.412 9.622 224
vgg16.tv_in1k 28.408 9.616 224
vgg16_bn.tv_in1k 26.630 8.486 224
vgg19.tv_in1k 27.622 9.126 224
vgg19_bn.tv_in1k 25.784 8.156 224
inception_resnet_v2.tf_ens_adv_in1k 20.022 5.054 299
inception_resnet_v2.tf_in1k 19.538 4.692 299
inception_v3.gluon_in1k 21.194 5.626 299
inception_v3.tf_adv_in1k 22.408 6.270 299
inception_v3.tf_in1k 22.138 6.356 299
inception_v3.tv_in1k 22.566 6.526 299
inception_v4.tf_in1k 19.844 5.032 299
legacy_xception.tf_in1k 20.960 5.618 299
densenet121.ra_in1k 23.500 6.632 288
densenet121.tv_in1k 25.236 7.846 224
densenet161.tv_in1k 22.642 6.358 224
densenet169.tv_in1k 24.100 6.972 224
densenet201.tv_in1k 22.714 6.520 224
mobilenetv2_050.lamb_in1k 34.050 13.912 224
mobilenetv2_100.ra_in1k 27.024 8.990 224
mobilenetv2_110d.ra_in1k 24.944 7.814 224
mobilenetv2_120d.ra_in1k 22.698 6.496 224
mobilenetv2_140.ra_in1k 23.480 7.014 224
mobilenetv3_large_100.miil_in21k_ft_in1k 22.082 7.086 224
mobilenetv3_large_100.ra_in1k 24.234 7.462 224
mobilenetv3_small_050.lamb_in1k 42.090 19.820 224
mobilenetv3_small_075.lamb_in1k 34.766 14.554 224
mobilenetv3_small_100.lamb_in1k 32.344 12.364 224
efficientnet_lite0.ra_in1k 24.520 7.478 224
tf_efficientnet_lite0.in1k 25.170 7.828 224
tf_efficientnet_lite1.in1k 23.356 6.770 240
tf_efficientnet_lite2.in1k 22.536 6.250 260
tf_efficientnet_lite3.in1k 20.192 5.088 300
tf_efficientnet_lite4.in1k 18.468 4.336 380
efficientnet_b0.ra_in1k 22.306 6.468 224
efficientnet_b1.ft_in1k 21.200 5.658 256
efficientnet_b2.ra_in1k 19.390 4.686 288
efficientnet_b3.ra2_in1k 17.758 3.882 320
efficientnet_b4.ra2_in1k 16.586 3.402 384
convnext_atto.d2_in1k 22.992 6.298 288
convnext_femto.d1_in1k 21.284 5.570 288
convnext_pico.d1_in1k 19.586 4.950 288
convnext_nano.d1h_in1k 18.518 4.342 288
convnext_nano.in12k_ft_in1k 17.138 3.444 288
convnext_tiny.fb_in1k 17.302 3.856 288
convnext_small.fb_in1k 16.300 3.192 288
swin_tiny_patch4_window7_224.ms_in1k 18.624 4.456 224
swin_small_patch4_window7_224.ms_in1k 16.792 3.684 224
swin_base_patch4_window7_224.ms_in1k 16.394 3.548 224
deit_tiny_patch16_224.fb_in1k 27.828 8.888 224
deit_small_patch16_224.fb_in1k 20.156 4.956 224
deit_base_patch16_224.fb_in1k 18.008 4.264 224
vit_tiny_patch16_224.augreg_in21k_ft_in1k 24.546 7.156 224
vit_small_patch16_224.augreg_in1k 21.154 5.712 224
vit_small_patch16_224.augreg_in21k_ft_in1k 18.616 3.864 224
vit_small_patch32_224.augreg_in21k_ft_in1k 24.006 6.730 224
vit_base_patch16_224.augreg_in1k 20.846 5.910 224
vit_base_patch16_224.orig_in21k_ft_in1k 18.214 3.876 224
vit_base_patch16_224.sam_in1k 19.756 5.244 224
vit_base_patch32_224.augreg_in1k 25.106 8.222 224
vit_base_patch32_224.augreg_in21k_ft_in1k 19.284 4.434 224
"""

TIMM_FIGURES: Mapping[str, tuple[float, float, int]] = {
    name: (float(top1), float(top5), int(side))
    for name, top1, top5, side in (row.split() for row in _TIMM_ROWS.strip().splitlines())
}
"""timm's weights to top-1 and top-5 error in percent, and the side of the image in pixels."""
