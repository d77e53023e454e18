"""Registration of GoogLeNet and AlexNet with timm, for exports of these two backbones.

``import finetune.timm_models`` before ``timm.create_model`` is all that an export of them needs;
other backbones are timm's own.
"""

from finetune.models import torchvision_models

torchvision_models.register()
