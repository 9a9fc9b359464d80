import gzip
import io
import logging
import zlib

import hypothesis
import nibabel
import numpy as np
import PIL.Image
import pydicom
import pydicom.dataset
import pydicom.encaps
import pydicom.uid
import pytest
from hypothesis import strategies as st

from medflax.data.readers import READERS, dicom_file, extension, png_jpeg, read_media, read_scan
from medflax.utils import UserError

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))  # 32 × 32, dark to bright
SECRET = "Doe^Secret"


def image(path, size=(32, 32)):
  return read_media(path, "image", size).array


def volume(path, size):
  return read_media(path, "volume", size).array


def fails(path, kind="image"):
  """The one line that reading `path` ends with."""
  with pytest.raises(UserError) as caught:
    read_media(path, kind, (8, 8) if kind == "image" else (4, 8, 8))
  message = str(caught.value)
  assert message.startswith(str(path))
  assert "\n" not in message
  return message


def save(array, path, **options):
  PIL.Image.fromarray(array).save(path, **options)
  return path


# PNG and JPEG


def test_a_grey_png_becomes_three_equal_channels(tmp_path):
  array = image(save(RAMP, tmp_path / "a.PNG"))
  assert array.dtype == np.uint8
  np.testing.assert_array_equal(array, np.repeat(RAMP[..., None], 3, axis=2))


def test_a_jpeg_keeps_its_colours(tmp_path):
  red = np.zeros((32, 32, 3), np.uint8)
  red[..., 0] = 200
  np.testing.assert_allclose(image(save(red, tmp_path / "a.jpg")), red, atol=3)


def test_a_16_bit_png_of_12_used_bits_is_not_black(tmp_path):
  array = image(save(RAMP.astype(np.uint16) * 16, tmp_path / "a.png"))
  assert array.max() == 255
  assert array.min() == 0
  assert (np.diff(array[0, :, 0].astype(int)) >= 0).all()


def test_palettes_are_resolved(tmp_path):
  picture = PIL.Image.fromarray(np.zeros((32, 32), np.uint8)).convert("P")
  picture.putpalette([10, 20, 30] * 256)
  picture.save(tmp_path / "a.png")
  assert (image(tmp_path / "a.png") == [10, 20, 30]).all()


def test_transparent_pixels_are_black(tmp_path):
  rgba = np.full((32, 32, 4), 200, np.uint8)
  rgba[:16, :, 3], rgba[16:, :, 3] = 0, 255
  array = image(save(rgba, tmp_path / "a.png"))
  assert (array[:16] == 0).all()
  assert (array[16:] == 200).all()


def test_exif_rotation_is_applied(tmp_path):
  exif = PIL.Image.Exif()
  exif[0x0112] = 3  # upside down
  array = image(save(RAMP, tmp_path / "a.jpg", exif=exif, quality=95))
  np.testing.assert_allclose(array[..., 0], RAMP[::-1, ::-1], atol=6)


def test_cmyk_turns_into_rgb(tmp_path):
  red = np.zeros((32, 32, 3), np.uint8)
  red[..., 0] = 200
  PIL.Image.fromarray(red).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
  np.testing.assert_allclose(image(tmp_path / "a.jpg"), red, atol=6)


def test_one_bit_and_grey_with_alpha(tmp_path):
  PIL.Image.fromarray(RAMP > 100).save(tmp_path / "a.png")
  np.testing.assert_array_equal(image(tmp_path / "a.png")[..., 0], (RAMP > 100) * 255)
  alpha = np.where(RAMP > 100, 255, 0).astype(np.uint8)
  layers = [PIL.Image.fromarray(layer) for layer in (RAMP, alpha)]
  PIL.Image.merge("LA", layers).save(tmp_path / "b.png")
  np.testing.assert_array_equal(image(tmp_path / "b.png")[..., 0], RAMP * (RAMP > 100))


def test_a_transparent_colour_of_a_palette_is_black(tmp_path):
  picture = PIL.Image.fromarray(RAMP // 128).convert("P")
  picture.putpalette([250, 0, 0] + [0, 250, 0] * 255)
  picture.save(tmp_path / "a.png", transparency=0)
  array = image(tmp_path / "a.png")
  assert set(map(tuple, array.reshape(-1, 3).tolist())) <= {(0, 0, 0), (0, 250, 0)}


@pytest.mark.parametrize("rotation", range(1, 9))
def test_every_exif_rotation_is_undone(tmp_path, rotation):
  exif = PIL.Image.Exif()
  exif[0x0112] = rotation
  upright = np.add.outer(np.arange(24), 4 * np.arange(16)).astype(np.uint8)
  # How the camera holds the upright picture (TIFF 6.0, Orientation).
  held = {
    1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
    5: upright.T, 6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
  }[rotation]  # fmt: skip
  path = save(np.ascontiguousarray(held), tmp_path / "a.jpg", exif=exif, quality=100)
  np.testing.assert_allclose(image(path, (24, 16))[..., 0], upright, atol=3)


def test_a_png_may_not_claim_more_than_deflate_can_hold(tmp_path):
  content = bytearray(save(RAMP, tmp_path / "a.png").read_bytes())
  content[16:24] = (9000).to_bytes(4, "big") * 2
  content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
  (tmp_path / "a.png").write_bytes(content)
  assert "is truncated" in fails(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_image_is_named(tmp_path, name):
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  path = save(noise, tmp_path / name)
  path.write_bytes(path.read_bytes()[:-1500])
  assert "is truncated" in fails(path)


def test_text_empty_and_missing_images_are_named(tmp_path):
  (tmp_path / "a.png").write_text("hello")
  (tmp_path / "b.jpg").touch()
  assert "is not a PNG or JPEG" in fails(tmp_path / "a.png")
  assert "is not a PNG or JPEG" in fails(tmp_path / "b.jpg")
  assert "No such file" in fails(tmp_path / "c.png")


def test_a_decompression_bomb_is_refused_undecoded(tmp_path, monkeypatch):
  path = save(RAMP, tmp_path / "a.png")
  monkeypatch.setattr(png_jpeg, "MAX_PIXELS", 1000)
  assert "more than 1,000 pixels" in fails(path)


def jpeg(shape, **options):
  """The bytes of a JPEG of noise."""
  content = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  PIL.Image.fromarray(noise).save(content, "JPEG", **options)
  return content.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("shape", [(37, 51, 3), (37, 51)])
def test_both_decoders_of_jpegs_agree(shape, options):
  content = jpeg(shape, **options)
  exif = PIL.Image.Exif()
  exif[0x0112] = 1  # leaves the file to Pillow
  straight, other = (
    png_jpeg.read_image(io.BytesIO(x)) for x in (content, jpeg(shape, exif=exif, **options))
  )
  assert png_jpeg._plain_jpeg(content, None) is not None
  assert straight.array.shape == (37, 51, 3 if len(shape) == 3 else 1)
  np.testing.assert_array_equal(straight.array, other.array)
  assert straight.units == other.units


@pytest.mark.parametrize(
  ("smallest", "size"),
  [((56, 112), (56, 112)), ((99, 48), (24, 48)), ((56, 56), (32, 64)), ((999, 999), (64, 128))],
)
def test_a_jpeg_is_scaled_by_eighths_while_it_is_decoded(smallest, size):
  array = png_jpeg.read_image(io.BytesIO(jpeg((64, 128, 3))), smallest).array
  assert array.shape == (*size, 3)


def test_a_jpeg_is_refused_wherever_it_is_cut():
  content = jpeg((40, 40, 3))
  for length in range(0, len(content) - 2, 7):
    with pytest.raises(UserError):
      png_jpeg.read_image(io.BytesIO(content[:length]))


# NIfTI


def nifti(path, array, affine=None):
  nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
  return path


def corner(shape=(4, 6, 8), at=(0, 0, 0)):
  array = np.zeros(shape, np.float32)
  array[at] = 1.0
  array[tuple(slice(x, x + 2) if x == 0 else slice(x - 1, x + 1) for x in at)] = 1.0
  return array


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axial_slices_lie_as_in_a_dicom_series(tmp_path, suffix):
  # Right, anterior, inferior in the patient: first slice, top row, left of the picture.
  path = nifti(tmp_path / f"a{suffix}", corner(at=(3, 5, 0)))
  array = volume(path, (8, 6, 4))
  assert array.shape == (8, 6, 4, 1)
  assert array[0, 0, 0, 0] == 255
  assert array[-1, -1, -1, 0] == 0


def test_the_storage_order_does_not_matter(tmp_path):
  array = np.random.default_rng(0).random((4, 6, 8)).astype(np.float32)
  plain = nibabel.Nifti1Image(array, np.eye(4))
  turned = plain.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
  assert turned.shape != plain.shape
  nibabel.save(plain, tmp_path / "a.nii")
  nibabel.save(turned, tmp_path / "b.nii")
  np.testing.assert_array_equal(
    volume(tmp_path / "a.nii", (8, 6, 4)), volume(tmp_path / "b.nii", (8, 6, 4))
  )


def test_thick_pixels_keep_their_proportions(tmp_path):
  path = nifti(tmp_path / "a.nii", np.ones((8, 4, 4), np.float32), np.diag([1.0, 2.0, 1.0, 1.0]))
  assert volume(path, (4, 8, 8)).shape == (4, 8, 8, 1)
  bright = corner((8, 4, 4), at=(7, 3, 3))
  array = volume(nifti(tmp_path / "b.nii", bright, np.diag([1.0, 2.0, 1.0, 1.0])), (4, 8, 8))
  assert array[-1, 0, 0, 0] == 255  # 4 × 2 mm by 8 × 1 mm is square: nothing is padded


def test_a_volume_with_nan_is_named_with_the_remedy(tmp_path):
  array = np.ones((4, 4, 4), np.float32)
  array[0, 0, :2] = np.nan, np.inf
  message = fails(nifti(tmp_path / "a.nii.gz", array), "volume")
  assert "2 NaN or infinite" in message
  assert "nan_to_num" in message


def test_time_series_need_a_choice_but_one_frame_is_fine(tmp_path):
  array = np.random.default_rng(0).random((4, 4, 4, 3)).astype(np.float32)
  assert "4 dimensions (3 volumes)" in fails(nifti(tmp_path / "a.nii", array), "volume")
  assert volume(nifti(tmp_path / "b.nii", array[..., :1]), (4, 4, 4)).shape == (4, 4, 4, 1)


@pytest.mark.parametrize(
  "content", [b"", b"hello", gzip.compress(b"hello", mtime=0), b"\x1f\x8b\x08"]
)
def test_what_is_not_nifti_is_named(tmp_path, content):
  for name in ("a.nii", "a.nii.gz"):
    (tmp_path / name).write_bytes(content)
    assert "NIfTI" in fails(tmp_path / name, "volume")


def test_a_truncated_volume_is_named(tmp_path):
  noise = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
  for name in ("a.nii", "a.nii.gz"):
    path = nifti(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[:-3000])
    assert "truncated" in fails(path, "volume")


def test_colours_two_dimensions_and_giants_are_refused(tmp_path):
  rgb = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
  assert "one real number" in fails(nifti(tmp_path / "a.nii", rgb), "volume")
  assert "has shape" in fails(nifti(tmp_path / "b.nii", np.ones((4, 4), np.float32)), "volume")
  header = nibabel.Nifti1Header()
  header.set_data_shape((30_000, 30_000, 30_000))
  with open(tmp_path / "c.nii", "wb") as file:
    header["vox_offset"], header["magic"] = 352, b"n+1"
    file.write(header.binaryblock + b"\0" * 100)
  assert "more than" in fails(tmp_path / "c.nii", "volume")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_may_not_claim_more_voxels_than_the_file_can_hold(tmp_path, name):
  header = nibabel.Nifti1Header()
  header.set_data_shape((600, 600, 600))
  header["vox_offset"], header["magic"] = 352, b"n+1"
  content = header.binaryblock + b"\0" * 100
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
  assert "is truncated" in fails(tmp_path / name, "volume")


# DICOM


def dicom(path, pixels, **elements):
  meta = pydicom.dataset.FileMetaDataset()
  meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
  meta.MediaStorageSOPInstanceUID = "1.2.3"
  dataset = pydicom.Dataset()
  dataset.file_meta = meta
  dataset.PatientName, dataset.PatientID = SECRET, "Secret-17"
  dataset.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
  dataset.PhotometricInterpretation = "RGB" if pixels.shape[-1] == 3 else "MONOCHROME2"
  shape = pixels.shape[:-1] if pixels.shape[-1] == 3 else pixels.shape
  dataset.Rows, dataset.Columns = shape[-2:]
  if len(shape) == 3:
    dataset.NumberOfFrames = shape[0]
  if dataset.SamplesPerPixel == 3:
    dataset.PlanarConfiguration = 0
  bits = pixels.dtype.itemsize * 8
  dataset.BitsAllocated = dataset.BitsStored = bits
  dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
  dataset.add_new("PixelData", "OB" if bits == 8 else "OW", pixels.tobytes())
  for keyword, value in elements.items():
    setattr(dataset, keyword, value)
  dataset.save_as(path, enforce_file_format=True)
  return path


HOUNSFIELD = np.array([[0, 1000], [1040, 3000]], np.uint16).repeat(4, 0).repeat(4, 1)


def test_rescaling_comes_before_the_window(tmp_path):
  path = dicom(
    tmp_path / "a.dcm",
    HOUNSFIELD,
    RescaleSlope=1,
    RescaleIntercept=-1024,
    WindowCenter=[40, 300],
    WindowWidth=[400, 1500],
  )
  array = image(path, (8, 8))
  low, width = 40 - 0.5 - 399 / 2, 399
  expected = [0, (1000 - 1024 - low) / width, (1040 - 1024 - low) / width, 1]
  np.testing.assert_allclose(
    [array[1, 1, 0], array[1, 6, 0], array[6, 1, 0], array[6, 6, 0]],
    np.array(expected) * 255,
    atol=1,
  )


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions(tmp_path, function):
  window = {"WindowCenter": 1000, "WindowWidth": 400, "VOILUTFunction": function}
  array = image(dicom(tmp_path / "a.dcm", HOUNSFIELD, **window), (8, 8))
  assert array[1, 1, 0] == 0
  assert abs(int(array[1, 6, 0]) - 127.5) < 1
  assert array[6, 6, 0] == 255


def test_monochrome1_is_inverted(tmp_path):
  plain = image(dicom(tmp_path / "a.dcm", HOUNSFIELD), (8, 8))
  inverted = dicom(tmp_path / "b.dcm", HOUNSFIELD, PhotometricInterpretation="MONOCHROME1")
  assert plain.min() == 0
  assert plain.max() == 255
  np.testing.assert_array_equal(image(inverted, (8, 8)), 255 - plain)


def test_signed_pixels_and_unequal_spacing(tmp_path):
  path = dicom(tmp_path / "a.dcm", HOUNSFIELD.astype(np.int16) - 1024, PixelSpacing=[2, 1])
  array = image(path, (8, 8))
  assert not array[:, :2].any()  # twice as high as wide
  assert array[6, 5, 0] == 255


def test_colour_is_kept(tmp_path):
  red = np.zeros((8, 8, 3), np.uint8)
  red[..., 0] = 200
  np.testing.assert_array_equal(image(dicom(tmp_path / "a.dcm", red), (8, 8)), red)


def test_frames_become_a_volume_in_the_files_order(tmp_path):
  frames = np.arange(4, dtype=np.uint16)[:, None, None].repeat(8, 1).repeat(8, 2)
  array = volume(dicom(tmp_path / "a.dcm", frames), (4, 8, 8))
  assert array.shape == (4, 8, 8, 1)
  assert (np.diff(array[:, 0, 0, 0].astype(int)) > 0).all()
  colour = frames[..., None].repeat(3, 3).astype(np.uint8) * 50
  array = volume(dicom(tmp_path / "b.dcm", colour), (4, 8, 8))
  np.testing.assert_allclose(array[:, 0, 0, 0], [0, 50, 100, 150], atol=1)


def test_enhanced_files_keep_rescaling_and_window_in_their_groups(tmp_path):
  def item(**elements):
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
      setattr(dataset, keyword, value)
    return dataset

  frames = np.ones((2, 8, 8), np.uint16)
  shared = item(FrameVOILUTSequence=[item(WindowCenter=5.5, WindowWidth=11)])
  per_frame = [
    item(PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0)])
    for slope in (1, 9)
  ]
  path = dicom(
    tmp_path / "a.dcm",
    frames,
    SharedFunctionalGroupsSequence=[shared],
    PerFrameFunctionalGroupsSequence=per_frame,
  )
  np.testing.assert_allclose(volume(path, (2, 8, 8))[:, 0, 0, 0], [25.5, 229.5], atol=1)


def test_a_text_file_named_dcm_is_named(tmp_path):
  (tmp_path / "a.dcm").write_text("hello, I am no image\n" * 50)
  assert "is not a DICOM file" in fails(tmp_path / "a.dcm")


def test_reports_and_cut_files_are_named(tmp_path):
  path = dicom(tmp_path / "a.dcm", HOUNSFIELD)
  path.write_bytes(path.read_bytes()[:-20])
  assert "truncated" in fails(path)
  dataset = pydicom.dcmread(dicom(tmp_path / "b.dcm", HOUNSFIELD))
  del dataset.PixelData
  dataset.save_as(tmp_path / "b.dcm")
  assert "without an image" in fails(tmp_path / "b.dcm")


def test_an_undecodable_compression_names_the_package(tmp_path, monkeypatch):
  monkeypatch.setattr(dicom_file, "_PLUGINS", ("pydicom", "pillow"))  # as without the extra
  dataset = pydicom.dcmread(dicom(tmp_path / "a.dcm", HOUNSFIELD))
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
  dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7junk"])
  dataset["PixelData"].is_undefined_length = True
  dataset.save_as(tmp_path / "a.dcm")
  assert "medflax[dicom]" in fails(tmp_path / "a.dcm")


def test_a_good_dicom_tells_nothing_about_the_patient(tmp_path):
  media = read_media(dicom(tmp_path / "a.dcm", HOUNSFIELD), "image", (8, 8))
  assert SECRET not in repr(media)
  assert set(vars(media)) == {"array", "kind"}


def test_complaints_about_a_damaged_file_do_not_quote_it(tmp_path, caplog):
  path = dicom(tmp_path / "a.dcm", HOUNSFIELD)
  content = bytearray(path.read_bytes())
  length = content.index(b"\x02\x00\x10\x00UI") + 6  # of the transfer syntax, grown over the name
  content[length : length + 2] = (300).to_bytes(2, "little")
  assert SECRET.encode() in content[length : length + 302]
  path.write_bytes(content)
  assert "Secret" not in fails(path)
  assert "Secret" not in caplog.text


# All formats


def test_the_kind_must_fit(tmp_path):
  assert "list it under `images`" in fails(save(RAMP, tmp_path / "a.png"), "volume")
  path = nifti(tmp_path / "a.nii", np.ones((4, 4, 4), np.float32))
  assert "list it under `volumes`" in fails(path, "image")
  assert "list it under `images`" in fails(dicom(tmp_path / "a.dcm", HOUNSFIELD), "volume")


def test_extensions():
  assert {extension(f"some.dir/A.b{known.upper()}") for known in READERS} == set(READERS)
  for name in ("a", "a.tiff", "png", "a.gz"):
    with pytest.raises(UserError, match="no known format"):
      extension(name)


def test_files_without_a_suffix_go_by_their_first_bytes(tmp_path):
  good = [
    save(RAMP, tmp_path / "a.png"),
    save(RAMP, tmp_path / "a.jpg"),
    dicom(tmp_path / "a.dcm", HOUNSFIELD),
  ]
  np.savez(tmp_path / "a.npz", np.ones((5, 2)))
  for path in [*good, tmp_path / "a.npz"]:
    bare = tmp_path / "IM000"
    bare.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read_scan(bare).array, read_scan(path).array)
  (tmp_path / "IM000").write_bytes(b"hello")
  with pytest.raises(UserError, match="IM000 is of no known format"):
    read_scan(tmp_path / "IM000")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
  """One good file of every format, as bytes."""
  folder = tmp_path_factory.mktemp("examples")
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 255, (12, 12), np.uint8)
  paths = [
    save(grey, folder / "a.png"),
    save(grey, folder / "a.jpg"),
    nifti(folder / "a.nii", rng.random((5, 5, 5)).astype(np.float32)),
    nifti(folder / "a.nii.gz", rng.random((5, 5, 5)).astype(np.float32)),
    dicom(folder / "a.dcm", grey.astype(np.uint16), WindowCenter=100, WindowWidth=80),
  ]
  return {path.name: path.read_bytes() for path in paths}


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, max_examples=300)
def test_damaged_files_end_in_one_line_that_tells_no_names(examples, tmp_path_factory, data):
  name = data.draw(st.sampled_from(sorted(examples)))
  content = bytearray(examples[name])
  for _ in range(data.draw(st.integers(0, 4))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  content = content[: data.draw(st.integers(0, len(content)))]
  path = tmp_path_factory.getbasetemp() / name
  path.write_bytes(content)
  kind, size = ("volume", (4, 8, 8)) if ".nii" in name else ("image", (8, 8))
  log, message = io.StringIO(), ""
  handler = logging.StreamHandler(log)
  logging.getLogger().addHandler(handler)
  try:
    media = read_media(path, kind, size)
    assert media.array.shape[:-1] == size
    assert media.array.dtype == np.uint8
  except UserError as error:
    message = str(error)
  finally:
    logging.getLogger().removeHandler(handler)
  assert message == "" or message.startswith(str(path))
  assert "\n" not in message
  assert "Secret" not in message + log.getvalue()
