import jax
import pytest

from medflax.parallel.mesh import AXES, make_mesh
from medflax.utils import UserError


def test_one_device():
  mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  assert dict(mesh.shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((2, 1, 1), "does not fit 1 device; the sizes must multiply"),
    ((-1, 2, 1), "data -1 · fsdp 2 · tensor 1"),
    ((-1, -1, 1), "at most one is -1"),
    ((0, 1, 1), "at least 1"),
  ],
)
def test_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(UserError) as error:
    make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[:1])
  assert message.replace("·", "×") in str(error.value)
