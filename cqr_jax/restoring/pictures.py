"""Image files as pixels that can be restored, and back, with all that they carry."""

import io
import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, PngImagePlugin

from cqr_jax import formats
from cqr_jax.data.compression import Compression
from cqr_jax.data.jpeg import ImageError, image_errors, integers_16
from cqr_jax.restoring import coefficients, deep
from cqr_jax.restoring.coefficients import Component

MAX_PIXELS = 200_000_000  # of an image; a larger one is taken for a decompression bomb

# What is opened, whatever the suffix: Pillow runs Ghostscript for some others.
_READ = tuple(name.upper() for name in formats.FORMATS)  # JPEG: MPO too
_SIDES = {"jpeg": 65_500, "webp": 16_383}  # the longest, in pixels
_JPEG_EXIF, _JPEG_XMP = 65_533, 65_504  # the longest, in bytes

_ORIENTATION = int(ExifTags.Base.Orientation)
# EXIF's orientation -> what turns it upright: transposing, then reversing each axis.
_TURNS = {
    2: (False, (1, -1)),
    3: (False, (-1, -1)),
    4: (False, (-1, 1)),
    5: (True, (1, 1)),
    6: (True, (1, -1)),
    7: (True, (-1, -1)),
    8: (True, (-1, 1)),
}
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:\s*=\s*["\']|>))[2-8]')

_KEPT = (*deep.TEXT_TAGS, _ORIENTATION)  # of a TIFF's own tags
_IFDS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_EXIF = b"Exif\0\0"


class Metadata(NamedTuple):
    """What a file tells beside its pixels; empty or None where it doesn't.

    Attributes:
      exif: as a JPEG holds it, orientation included.
      icc_profile: colour profile.
      xmp: XML.
      dpi: across and down.
    """

    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
      pixels: uint8 or uint16 (full range), (height, width, channels): gray, RGB or
        CMYK (as Pillow has it: 0 is no ink); to be turned as the metadata says.
      alpha: of the same dtype, (height, width), or None.
      compression: of a JPEG, what its tables tell; None of others.
      stored: the DCT coefficients of a gray or YCbCr JPEG, if they were asked for.
      metadata: what to carry over.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    compression: Compression | None = None
    stored: tuple[Component, ...] | None = None
    metadata: Metadata = Metadata()

    def stacked(self) -> np.ndarray:
        """The pixels, with the alpha as their last channel if there is one."""
        if self.alpha is None:
            return self.pixels
        return np.concatenate([self.pixels, self.alpha[..., None]], axis=-1)


def decode(data: bytes, max_pixels: int = MAX_PIXELS, stored: bool = False) -> Picture:
    """The picture in a file's bytes, whatever its format and colours.

    A palette becomes RGB. 16 bits a channel are kept, in PNG and TIFF.

    Args:
      data: the bytes.
      max_pixels: of the image, at most.
      stored: read the DCT coefficients of a JPEG too.

    Raises:
      ImageError: not an image of `formats.FORMATS`, damaged or truncated, above
        `max_pixels`, of several pages or frames, or of colours that are neither gray
        nor RGB nor CMYK.
    """
    if not data:
        raise ImageError("an empty file")
    with image_errors(), Image.open(io.BytesIO(data), formats=_READ) as image:
        _check(image, max_pixels)
        pixels, exif = deep.pixels(image, data), None
        if image.format == "TIFF":
            # Loading closes the file, and turns what Pillow reads.
            turned = pixels is None
            exif = _exif_bytes(_of_the_picture(image.getexif(), turned))
        image.load()
        picture = _picture(image, pixels, exif)
    if stored and isinstance(image, JpegImagePlugin.JpegImageFile) and _is_ycbcr(image):
        height, width = picture.pixels.shape[:2]
        picture = picture._replace(stored=coefficients.read(data, height, width))
    return picture


def _is_ycbcr(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether an opened JPEG is gray or stores Y, Cb and Cr: some store RGB itself."""
    names = bytes(layer[0] for layer in image.layer)
    return names != b"RGB" and (
        len(image.layer) == 1
        or (len(image.layer) == 3 and image.info.get("adobe_transform", 1) == 1)
    )


def encode(picture: Picture, name: str, quality: int = 95) -> bytes:
    """The bytes of a file of a picture, with its metadata as far as the format has it.

    PNG, WebP and TIFF are lossless (TIFF of 8 bits without compression: with it Pillow
    can't write EXIF), JPEG has its chroma at full resolution. CMYK is
    kept by JPEG and TIFF and becomes RGB elsewhere, by its profile if it has one. BMP
    holds of the metadata the resolution alone, WebP all but that. PNG, WebP and BMP are
    written upright, for many viewers turn none of them.

    Args:
      picture: to write.
      name: of a format of `formats.FORMATS`.
      quality: of a JPEG, 1 to 100.

    Raises:
      ImageError: the format can't hold it, see `check`; or its metadata are damaged.
    """
    check(picture, name)
    try:
        if name in ("png", "webp", "bmp"):
            picture = upright(picture)
        if picture.pixels.dtype == np.uint16:
            return deep.encode(picture, name)
        return _encode(picture, name, quality)
    except Exception as error:  # whatever odd metadata lead the libraries to
        raise ImageError(f"can't be written as {name}: {error}") from None


def check(
    picture: Picture, name: str, dtype: np.typing.DTypeLike | None = None
) -> None:
    """Whether a format can hold a picture.

    Args:
      picture: as it is, or is to become.
      name: of a format of `formats.FORMATS`.
      dtype: of the pixels; None for that of the picture's.

    Raises:
      ImageError: it can't hold its size, its transparency, its 16 bits or so long an
        EXIF or XMP.
    """
    has_alpha, channels = picture.alpha is not None, picture.pixels.shape[-1]
    if (side := max(picture.pixels.shape[:2])) > (longest := _SIDES.get(name, side)):
        raise ImageError(f"{side} pixels long, {name} can hold {longest}; take png")
    meta = picture.metadata
    if name == "jpeg" and (len(meta.exif) > _JPEG_EXIF or len(meta.xmp) > _JPEG_XMP):
        raise ImageError("its EXIF or XMP is more than jpeg can hold; take png")
    if has_alpha and name in ("jpeg", "bmp"):
        raise ImageError(f"has transparency, which {name} can't hold; take png")
    if np.dtype(dtype or picture.pixels.dtype) == np.uint8:
        return
    if name not in ("png", "tiff"):
        raise ImageError(
            f"16 bits are more than {name} can hold; take png or tiff, or 8 bits"
        )
    if channels == 4:
        raise ImageError("CMYK is written with 8 bits only")
    if name == "tiff" and channels == 1 and has_alpha:
        raise ImageError("16-bit gray with transparency is written as png only")


def _encode(picture: Picture, name: str, quality: int) -> bytes:
    """By Pillow."""
    image, meta = to_pillow(picture), picture.metadata
    if image.mode == "CMYK" and name not in ("jpeg", "tiff"):
        image, meta = to_rgb(image, meta), meta._replace(icc_profile=b"")
    buffer = io.BytesIO()
    image.save(buffer, name, **_options(name, meta, quality))
    return buffer.getvalue()


def _check(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{image.width}x{image.height} is above {max_pixels / 1e6:g} megapixels"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # of an MPO the first is the picture
        raise ImageError(f"holds {frames} frames or pages; split it first")


def from_pillow(image: Image.Image) -> Picture:
    """The picture in one of Pillow's images.

    Raises:
      ImageError: damaged, or of colours that are neither gray nor RGB nor CMYK.
    """
    with image_errors():
        image.load()  # only then are metadata behind a PNG's pixels known
    return _picture(image)


def to_pillow(picture: Picture) -> Image.Image:
    """The picture as one of Pillow's images, of 8 bits or 16-bit gray.

    Raises:
      ImageError: 16 bits a channel that is not gray.
    """
    pixels = picture.stacked()
    if pixels.dtype == np.uint16 and pixels.shape[-1] > 1:
        raise ImageError("Pillow has 16 bits for gray alone")
    if picture.pixels.shape[-1] == 4:
        return Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes())
    return Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0])


def upright(picture: Picture) -> Picture:
    """The picture turned as its EXIF says, which then says that it is upright.

    The rest of EXIF stays as it is, but for the thumbnail, which goes. Without an
    orientation, or with EXIF that can't be read, the picture is as it was. Compression
    and stored coefficients stay those of the file.
    """
    meta = picture.metadata
    try:
        tags = Image.Exif()
        tags.load(meta.exif)
        transposed, (down, across) = _TURNS[tags[_ORIENTATION]]
        exif = _said_upright(meta.exif)
    except Exception:  # whatever damaged EXIF leads Pillow to
        return picture

    def turned(values):
        return (values.swapaxes(0, 1) if transposed else values)[::down, ::across]

    return picture._replace(
        pixels=turned(picture.pixels),
        alpha=None if picture.alpha is None else turned(picture.alpha),
        metadata=meta._replace(
            exif=exif,
            xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", meta.xmp),
            dpi=meta.dpi[::-1] if meta.dpi and transposed else meta.dpi,
        ),
    )


def _said_upright(exif: bytes) -> bytes:
    """EXIF with the orientation 1 and without a thumbnail, the rest byte for byte.

    Pillow would write its texts and the camera's own notes anew, and not as they were.
    """
    found, start = bytearray(exif), len(_EXIF)  # where offsets count from
    order = {b"II": "<", b"MM": ">"}[exif[start : start + 2]]
    (offset,) = struct.unpack_from(f"{order}I", exif, start + 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start + offset)
    entries = start + offset + 2
    for entry in range(entries, entries + 12 * count, 12):
        (tag,) = struct.unpack_from(f"{order}H", exif, entry)
        if tag == _ORIENTATION:  # type SHORT, one of them
            struct.pack_into(f"{order}HIHH", found, entry + 2, 3, 1, 1, 0)
    struct.pack_into(f"{order}I", found, entries + 12 * count, 0)  # no second image
    return bytes(found)


def _picture(
    image: Image.Image, pixels: np.ndarray | None = None, exif: bytes | None = None
) -> Picture:
    """Of pixels with their alpha, and of EXIF, if given, else of what Pillow gives."""
    metadata = _metadata(image, exif)
    compression = None
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        (_, across, down, table), *others = image.layer
        compression = Compression(tuple(image.quantization[table]))
        if others:
            (_, across_1, down_1, table_1) = others[0]
            compression = Compression(
                compression.luma,
                tuple(image.quantization[table_1]),
                (max(1, down // down_1), max(1, across // across_1)),
            )
    if pixels is None:
        pixels = _pixels(image)
    alpha = None
    if pixels.shape[-1] in (2, 4) and image.mode != "CMYK":
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
    return Picture(pixels, alpha, compression, metadata=metadata)


def _pixels(image: Image.Image) -> np.ndarray:
    """Gray, gray and alpha, RGB, RGBA or CMYK."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode.startswith("I"):
        return integers_16(image)[..., None]
    elif image.mode in ("F", "LAB", "HSV"):
        raise ImageError(f"colours of mode {image.mode}; convert it to RGB first")
    elif image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _metadata(image: Image.Image, exif: bytes | None) -> Metadata:
    if exif is None:
        exif = image.info.get("exif", b"")
        if not exif and "Raw profile type exif" in image.info:
            exif = image.getexif().tobytes()
        if exif:  # in a WebP without its name
            exif = _EXIF + exif.removeprefix(_EXIF)
    xmp = image.info.get("xmp", b"")
    dpi = image.info.get("dpi")
    return Metadata(
        exif,
        image.info.get("icc_profile") or b"",
        xmp.encode() if isinstance(xmp, str) else xmp,
        (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 1 else None,
    )


def _of_the_picture(found: Image.Exif, turned: bool = False) -> Image.Exif:
    """What tags say of the picture, without what they say of the file, as its size.

    Args:
      found: all tags.
      turned: whether the pixels are going to be turned upright.
    """
    kept = Image.Exif()
    for tag in _KEPT:
        if tag in found and not (turned and tag == _ORIENTATION):
            kept[tag] = found[tag]
    for ifd in _IFDS:
        if tags := found.get_ifd(ifd):
            kept.get_ifd(ifd).update(tags)
    return kept


def _exif_bytes(tags: Image.Exif) -> bytes:
    """As a JPEG holds them; nothing for none."""
    return tags.tobytes() if len(tags) or any(map(tags.get_ifd, _IFDS)) else b""


def to_rgb(image: Image.Image, meta: Metadata) -> Image.Image:
    """An image in RGB; of CMYK by its colour profile, if it has one."""
    if image.mode == "CMYK" and meta.icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(meta.icc_profile))
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(
                image, profile, srgb, outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (OSError, ImageCms.PyCMSError):
            pass  # a profile that isn't one of CMYK: as without
    return image.convert("RGB")


def _options(name: str, meta: Metadata, quality: int) -> dict:
    """What Pillow is told beside the pixels."""
    options: dict = {}
    if name == "bmp":
        return {"dpi": meta.dpi} if meta.dpi else {}
    if name == "tiff":
        given, tags = Image.Exif(), Image.Exif()
        given.load(meta.exif)
        tags.load(_exif_bytes(_of_the_picture(given)))
        if meta.xmp:
            tags[deep.XMP_TAG] = meta.xmp
        options["exif"] = tags
    elif meta.exif:
        options["exif"] = meta.exif
    if meta.icc_profile:
        options["icc_profile"] = meta.icc_profile
    if meta.dpi and name != "webp":
        options["dpi"] = meta.dpi
    if meta.xmp:
        if name == "png":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", meta.xmp.decode(errors="replace"))
            options["pnginfo"] = info
        elif name != "tiff":
            options["xmp"] = meta.xmp
    if name == "jpeg":
        options |= {"quality": quality, "subsampling": 0}
    elif name == "webp":
        options |= {"lossless": True, "quality": 50}  # of the effort
    return options
