"""Any picture comes in upright, RGB and of the size asked for; anything else is one sentence."""

import io
import struct
import zlib
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from stylenb import SAMPLE_PHOTOS, StylenbError, open_photo, sample_photo, to_pictures, to_tensor


def encoded(picture, kind, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def values(picture) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_every_kind_of_source_gives_the_same_picture(gradient, tmp_path):
    data = encoded(gradient, "PNG")
    path = tmp_path / "a photo é.png"
    path.write_bytes(data)
    array = np.asarray(gradient)
    with open(path, "rb") as file:
        sources = [
            *(path, str(path), data, bytearray(data), io.BytesIO(data), file, gradient),
            *(array, array / 255, (array / 255).astype(np.float32), array.astype(np.int64)),
            array.astype(np.uint16) * 257,
        ]
        for source in sources:
            picture = open_photo(source)
            assert picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), array)


def test_the_callers_picture_is_left_alone(gradient):
    opened = open_photo(gradient)
    opened.putpixel((0, 0), (9, 9, 9))
    assert gradient.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(gradient, orientation):
    # What a camera stores for an upright scene under this tag, undone
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = gradient.transpose(undo[orientation]) if orientation in undo else gradient
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = open_photo(encoded(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(picture), np.asarray(gradient))
    assert "exif" not in picture.info


def test_alpha_is_laid_on_white():
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    clear = Image.new("LA", (20, 20), (0, 0))
    assert open_photo(encoded(half, "PNG")).getpixel((5, 5)) == (127, 127, 127)
    assert open_photo(encoded(clear, "PNG")).getpixel((5, 5)) == (255, 255, 255)
    assert open_photo(half.convert("RGBa")).getpixel((5, 5)) == (127, 127, 127)
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.paste(1, (10, 0, 20, 20))
    picture = open_photo(encoded(palette, "PNG", transparency=0))
    assert picture.getpixel((5, 5)) == (255, 255, 255)
    assert picture.getpixel((15, 5)) == (0, 0, 200)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"])
def test_every_mode_keeps_its_brightness(gradient, mode):
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    if mode == "LAB":
        source = ImageCms.profileToProfile(gradient, *profiles, outputMode="LAB")
        source.info["icc_profile"] = ImageCms.ImageCmsProfile(profiles[1]).tobytes()
    else:
        source = gradient.convert(mode)
    picture = open_photo(source)
    assert picture.mode == "RGB"
    assert abs(values(picture).mean() - values(gradient).mean()) < 12


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    expected = np.round(ramp / 257)
    for source in (
        encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"),
        encoded(Image.fromarray(ramp.astype(np.uint16)), "TIFF"),
        Image.fromarray(ramp.astype(np.int32)),
        Image.fromarray((ramp / 65535).astype(np.float32)),
        ramp.astype(np.uint16),
    ):
        assert np.abs(values(open_photo(source))[:, :, 1] - expected).max() <= 1


def test_a_colour_profile_is_converted_to_srgb(gradient):
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert open_photo(encoded(gradient, "PNG", icc_profile=linear)).mode == "RGB"
    assert "icc_profile" not in open_photo(encoded(gradient, "PNG", icc_profile=b"bad")).info
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = open_photo(encoded(gradient, "PNG", icc_profile=same))
    assert np.abs(values(picture) - values(gradient)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = open_photo(data).getpixel((9, 9))
    assert red > 240 and green < 15 and blue < 15
    later = Image.open(io.BytesIO(data))
    later.seek(2)
    assert open_photo(later).getpixel((9, 9))[0] > 240


def test_crop_keeps_the_centre_and_pad_keeps_everything(gradient):
    crop = open_photo(gradient, 64)
    assert np.array_equal(np.asarray(crop), np.asarray(gradient)[:, 16:80])
    pad = open_photo(gradient, 96, fit="pad")
    assert np.array_equal(np.asarray(pad)[16:80], np.asarray(gradient))
    assert np.array_equal(np.asarray(pad)[15], np.asarray(gradient)[0])
    assert open_photo(gradient, (40, 24)).size == (40, 24)
    thin = Image.new("RGB", (400, 20), "teal")
    assert open_photo(thin, 64, fit="pad").size == open_photo(thin, 64).size == (64, 64)


SHAPES = {(90, 60): (64, 43), (60, 90): (43, 64), (70, 70): (64, 64), (640, 32): (64, 16)}
SHAPES |= {(16, 16): (64, 64), (3000, 2001): (64, 43), (64, 41): (64, 41)}


@pytest.mark.parametrize("own", SHAPES)
def test_the_whole_picture_keeps_its_shape(own):
    photo = Image.new("RGB", own, "teal")
    assert open_photo(photo, 64, "whole").size == SHAPES[own]
    assert open_photo(photo, (64, 200), "whole").size[0] <= 64  # in a box
    long = open_photo(photo, 1000, "whole").size  # nothing is near 16 here: to the pixel
    scale = 1000 / max(own)
    pairs = zip(long, own, strict=True)
    assert max(long) == 1000 and all(abs(a - b * scale) <= 0.5 for a, b in pairs)


@pytest.mark.parametrize("own", [(300, 200), (200, 300), (128, 128), (800, 100)])
@pytest.mark.parametrize("size", [64, 500, (100, 300)])
def test_nothing_of_the_whole_picture_is_cut(own, size):
    photo = Image.new("RGB", own, "red")
    edge = min(own) // 3
    photo.paste((0, 0, 255), (edge, edge, own[0] - edge, own[1] - edge))
    picture = values(open_photo(photo, size, "whole"))
    centre = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    assert centre[2] > 200
    for side in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (side[:, 0] > 200).all() and (side[:, 2] < 60).all()


@pytest.mark.parametrize("name", SAMPLE_PHOTOS)
def test_sample_photos_come_with_scikit_image(name):
    picture = sample_photo(name, 64)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert values(picture).std() > 5


def test_tensors_and_pictures_are_inverse(gradient):
    tensor = to_tensor([gradient, gradient])
    assert tensor.shape == (2, 3, 64, 96) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() <= 1
    back = to_pictures(tensor)
    assert len(back) == 2 and all(
        np.array_equal(np.asarray(picture), np.asarray(gradient)) for picture in back
    )
    assert to_tensor(gradient).shape == (1, 3, 64, 96)
    assert to_pictures(torch.full((3, 16, 16), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def huge_png(side) -> bytes:
    """A valid header of a square picture whose pixels never come."""

    def chunk(data):
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", crc32(data))

    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG")
CLOSED = io.BytesIO(PNG)
CLOSED.close()
BAD_SOURCES = {
    "missing": ("nowhere.jpg", "no file 'nowhere.jpg'"),
    "web": ("https://example.org/cat.jpg", "download"),
    "null byte": ("a\0b.png", "check the path"),
    "long name": ("x" * 5000, "check the path"),
    "none": (None, "NoneType"),
    "number": (7, "int"),
    "list": ([[1, 2]], "list"),
    "no bytes": (b"", "is empty"),
    "text": (b"this is not a picture, it is a letter" * 9, "not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "pdf": (b"%PDF-1.4 and so on", "not a picture"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "damaged or cut off"),
    "half a png": (PNG[: len(PNG) // 2], "damaged or cut off"),
    "jpeg header only": (JPEG[:40], "picture"),
    "closed file": (CLOSED, "open it again"),
    "text file object": (io.StringIO("hello"), "'rb'"),
    "tiny": (encoded(Image.new("RGB", (15, 300)), "PNG"), "at least 16"),
    "one pixel": (Image.new("RGB", (1, 1)), "at least 16"),
    "strip": (Image.new("L", (20 * 17 * 2, 17)), "20:1"),
    "huge": (huge_png(12000), "100 megapixels"),
    "bomb": (huge_png(60000), "100 megapixels"),
    "channels first": (np.zeros((3, 64, 64)), "channels to the end"),
    "a batch": (np.zeros((2, 64, 64, 3)), "one picture at a time"),
    "a row": (np.zeros(64), "shape"),
    "empty array": (np.zeros((0, 64, 3)), "at least 16"),
    "nan": (np.full((64, 64), np.nan), "NaN"),
    "nan picture": (Image.fromarray(np.full((64, 64), np.inf, np.float32)), "NaN"),
    "minus one": (np.full((64, 64), -1.0), "0..1"),
    "floats to 255": (np.full((64, 64, 3), 255.0), "0..1"),
    "large integers": (np.full((64, 64), 256), "0..255"),
    "complex": (np.zeros((64, 64), complex), "complex"),
    "objects": (np.full((64, 64), None), "object"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_photo_is_one_sentence(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, part = BAD_SOURCES[case]
    with pytest.raises(StylenbError) as caught:
        open_photo(source)
    message = str(caught.value)
    assert part in message
    assert "\n" not in message and message.endswith(".")


def test_the_sentence_names_the_file(tmp_path):
    for name, data in (("empty.png", b""), ("cut.jpg", JPEG[:700]), ("letter.jpg", b"Dear ...")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(StylenbError, match=name):
            open_photo(path)
    with pytest.raises(StylenbError, match="is a folder"):
        open_photo(tmp_path)


@pytest.mark.parametrize("size", [0, -64, 8, 64.5, "64", True, (64,), (64, 64, 3), 10**6, [64, 2]])
def test_a_bad_size_is_one_sentence(gradient, size):
    with pytest.raises(StylenbError, match="size must be"):
        open_photo(gradient, size)


BAD_CALLS = {
    "'crop', 'pad'": lambda: open_photo(NOISE, 64, fit="stretch"),
    "choose one of astronaut": lambda: sample_photo("unicorn"),
    "empty": lambda: to_tensor([]),
    "one size": lambda: to_tensor([NOISE, NOISE.resize((32, 32))]),
    "open_photo": lambda: to_tensor([np.zeros((64, 64, 3))]),
    "base.decode": lambda: to_pictures(torch.zeros(1, 4, 8, 8)),
    "NaN": lambda: to_pictures(torch.full((1, 3, 8, 8), torch.nan)),
}


@pytest.mark.parametrize("part", BAD_CALLS)
def test_other_bad_arguments(part):
    with pytest.raises(StylenbError, match=part):
        BAD_CALLS[part]()


def test_without_scikit_image_the_sample_photos_say_what_to_do(monkeypatch):
    monkeypatch.setattr("stylenb.photos.find_spec", lambda name: None)
    with pytest.raises(StylenbError, match="requirements.txt"):
        sample_photo("astronaut")


# --- PNG files as programs write them ---


def with_chunk(kind, data):
    """A small PNG with one chunk more after its header."""
    plain = encoded(Image.linear_gradient("L").convert("RGB"), "PNG")
    checked = kind + data
    length, check = struct.pack(">I", len(data)), struct.pack(">I", crc32(checked))
    return plain[:33] + length + checked + check + plain[33:]


def test_large_texts_and_profiles_are_no_damage(monkeypatch):
    plain, text = open_photo(Image.linear_gradient("L").convert("RGB")), b"x" * 3_000_000
    for kind, data in (
        (b"tEXt", b"workflow\0" + text),
        (b"zTXt", b"workflow\0\0" + zlib.compress(text)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
        (b"iCCP", b"icc\0\0" + zlib.compress(text)),
    ):
        assert open_photo(with_chunk(kind, data)) == plain
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    assert limits[0] < len(text)  # of others who open files here nothing is changed
    monkeypatch.setattr("stylenb.picture_formats.MAX_TEXT", 2_000_000)
    with pytest.raises(StylenbError, match="full of text .* save it again without its texts"):
        open_photo(with_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(text)))
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_the_clear_colour_of_16_bits():
    """tRNS names one grey value, or one colour, that stands for nothing."""
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    plain = encoded(Image.fromarray(ramp), "PNG")
    data = b"tRNS" + struct.pack(">H", int(ramp[10, 10]))
    chunk = struct.pack(">I", 2) + data + struct.pack(">I", crc32(data))
    got = np.asarray(open_photo(plain[:33] + chunk + plain[33:]))
    expected = np.asarray(open_photo(plain)).copy()
    expected[10, 10] = 255
    assert np.array_equal(got, expected)
    picture = Image.new("RGB", (32, 32), (10, 20, 30))
    picture.info["transparency"] = (10 << 8, 20 << 8, 30 << 8)
    assert np.asarray(open_photo(picture)).min() == 255
