"""Builders of data sets: their files as distributed, into folders that `prepared` reads."""

from medflax.data.builders.base import Builder
from medflax.data.builders.medpix import MEDPIX
from medflax.data.builders.path_vqa import PATH_VQA
from medflax.data.builders.pmc_vqa import PMC_VQA_V1, PMC_VQA_V2
from medflax.data.builders.roco import ROCO, ROCO_V2
from medflax.data.builders.slake import SLAKE_EN, SLAKE_ZH
from medflax.data.builders.vqa_rad import VQA_RAD, VQA_RAD_DISJOINT, VQA_RAD_MEVF

BUILDERS: dict[str, Builder] = {
  "vqa_rad": VQA_RAD,
  "vqa_rad_disjoint": VQA_RAD_DISJOINT,
  "vqa_rad_mevf": VQA_RAD_MEVF,
  "slake_en": SLAKE_EN,
  "slake_zh": SLAKE_ZH,
  "path_vqa": PATH_VQA,
  "pmc_vqa_v1": PMC_VQA_V1,
  "pmc_vqa_v2": PMC_VQA_V2,
  "medpix": MEDPIX,
  "roco": ROCO,
  "roco_v2": ROCO_V2,
}
