"""Builders of data sets: their files as distributed, into folders that `prepared` reads."""

from medflax.data.builders.base import Builder
from medflax.data.builders.ct_rate import CT_RATE
from medflax.data.builders.hannover_cxr import HANNOVER_CXR
from medflax.data.builders.iu_xray import IU_XRAY, IU_XRAY_OPENI, IU_XRAY_R2GEN
from medflax.data.builders.med_dialog import MED_DIALOG
from medflax.data.builders.med_qa import MED_QA
from medflax.data.builders.mediqa import MEDIQA_QA, MEDIQA_RQE
from medflax.data.builders.medpix import MEDPIX
from medflax.data.builders.mimic_cxr import MIMIC_CXR
from medflax.data.builders.mirp import MIRP
from medflax.data.builders.msd import MSD
from medflax.data.builders.path_vqa import PATH_VQA
from medflax.data.builders.pmc_case_report import PMC_CASE_REPORT
from medflax.data.builders.pmc_inline import PMC_INLINE
from medflax.data.builders.pmc_oa import PMC_OA, PMC_OA_BETA
from medflax.data.builders.pmc_vqa import PMC_VQA_V1, PMC_VQA_V2
from medflax.data.builders.ptb_xl import PTB_XL
from medflax.data.builders.pubmed_qa import PUBMED_QA
from medflax.data.builders.roco import ROCO, ROCO_V2
from medflax.data.builders.slake import SLAKE_EN, SLAKE_ZH
from medflax.data.builders.textbooks import TEXTBOOKS
from medflax.data.builders.usmle import USMLE
from medflax.data.builders.vqa_med import VQA_MED_2019, VQA_MED_2020, VQA_MED_2021
from medflax.data.builders.vqa_rad import VQA_RAD, VQA_RAD_DISJOINT, VQA_RAD_MEVF
from medflax.data.builders.wfdb_alarms import WFDB_ALARMS

# Name on the command line → the data set.
BUILDERS: dict[str, Builder] = {
  "vqa_rad": VQA_RAD,
  "vqa_rad_disjoint": VQA_RAD_DISJOINT,
  "vqa_rad_mevf": VQA_RAD_MEVF,
  "slake_en": SLAKE_EN,
  "slake_zh": SLAKE_ZH,
  "path_vqa": PATH_VQA,
  "pmc_vqa_v1": PMC_VQA_V1,
  "pmc_vqa_v2": PMC_VQA_V2,
  "vqa_med_2019": VQA_MED_2019,
  "vqa_med_2020": VQA_MED_2020,
  "vqa_med_2021": VQA_MED_2021,
  "medpix": MEDPIX,
  "usmle": USMLE,
  "pmc_oa": PMC_OA,
  "pmc_oa_beta": PMC_OA_BETA,
  "roco": ROCO,
  "roco_v2": ROCO_V2,
  "pmc_inline": PMC_INLINE,
  "pmc_case_report": PMC_CASE_REPORT,
  "textbooks": TEXTBOOKS,
  "iu_xray": IU_XRAY,
  "iu_xray_openi": IU_XRAY_OPENI,
  "iu_xray_r2gen": IU_XRAY_R2GEN,
  "mimic_cxr": MIMIC_CXR,
  "hannover_cxr": HANNOVER_CXR,
  "ct_rate": CT_RATE,
  "msd": MSD,
  "mirp": MIRP,
  "ptb_xl": PTB_XL,
  "wfdb_alarms": WFDB_ALARMS,
  "med_qa": MED_QA,
  "pubmed_qa": PUBMED_QA,
  "mediqa_qa": MEDIQA_QA,
  "mediqa_rqe": MEDIQA_RQE,
  "med_dialog": MED_DIALOG,
}
