"""x"""

from configs import common


def get_config():
    return common.digits_transformation(common.fct())
