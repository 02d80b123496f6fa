"""Decoding of image files to pixels, and encoding of them, with their metadata."""

import io

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin

from cqr_jax import formats
from cqr_jax.data.compression import Compression
from cqr_jax.data.jpeg import ImageError, image_errors, integers_16
from cqr_jax.restoring import (
    coefficients,
    exif,
    foreign,
    gif_file,
    heif_file,
    jpeg_file,
    jxl_file,
    limits,
    metadata,
    native,
    png_file,
    profiles,
    tiff_file,
)
from cqr_jax.restoring import xmp as xmp_packets
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture

MAX_PIXELS = 200_000_000  # larger images are rejected as decompression bombs

# Formats for Pillow to open, whatever the suffix. It runs Ghostscript for some others.
_READ = (*(name.upper() for name in formats.FORMATS), "GIF")
_SIDES = {"jpeg": 65_500, "webp": 16_383}  # longest sides in pixels
# EXIF orientation -> operations that make it upright: whether to transpose, then the
# direction of each axis.
_TURNS = {
    2: (False, (1, -1)),
    3: (False, (-1, -1)),
    4: (False, (-1, 1)),
    5: (True, (1, 1)),
    6: (True, (1, -1)),
    7: (True, (-1, -1)),
    8: (True, (-1, 1)),
}


def decode(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    stored: bool = False,
    salvage: bool = False,
) -> Picture:
    """Decodes the bytes of an image file of any format in `formats.READ`.

    A palette becomes RGB. PNG and TIFF keep 16 bits per channel. Metadata that can't be
    read are dropped and noted in `Picture.notes`.

    Args:
      data: bytes of the file.
      max_pixels: maximum number of pixels.
      stored: whether to read the DCT coefficients of a JPEG too. They are not read from
        a truncated file.
      salvage: whether to decode the available part of a truncated JPEG or PNG and note
        the missing part.

    Raises:
      ImageError: if the file is not an image in `formats.READ`, is damaged or
        truncated, has more than `max_pixels` pixels, has several pages or frames, or
        has colours that are neither gray nor RGB nor CMYK.
    """
    if not data:
        raise ImageError("an empty file")
    with image_errors():
        if data.startswith(jpeg_file.SIGNATURE):
            return _decode_jpeg(data, max_pixels, stored, salvage)
        if data.startswith(png_file.SIGNATURE):
            return _decode_png(data, max_pixels, salvage)
        if data.startswith(tiff_file.SIGNATURES):
            return _decode_tiff(data, max_pixels)
        if data.startswith(jxl_file.SIGNATURES):
            return _decode_jxl(data, max_pixels, stored, salvage)
        if kind := heif_file.kind(data):
            return _decode_heif(data, max_pixels, kind)
        if name := foreign.name(data):
            raise ImageError(
                f"a file of {name}, which is not supported; convert it to PNG first"
            )
        with Image.open(io.BytesIO(data), formats=_READ) as image:
            _check(image, max_pixels)
            image.load()
            picture = _picture(image)
    if data.startswith(gif_file.SIGNATURES):
        comment = image.info.get("comment", b"").rstrip(b"\0")
        meta = picture.metadata._replace(
            xmp=gif_file.xmp(data), comments=(comment,) if comment else ()
        )
        picture = picture._replace(metadata=meta)
    return picture


def _decode_jpeg(data: bytes, max_pixels: int, stored: bool, salvage: bool) -> Picture:
    opened = jpeg_file.read(data)
    found, notes = opened.found, list(opened.found.notes)
    with Image.open(io.BytesIO(found.data), formats=["JPEG"]) as image:
        _check(image, max_pixels)
        image.load()
        picture = _picture(image, found.metadata)
        missing = jpeg_file.missing(opened, np.asarray(image))
    if missing:
        if not (salvage or jpeg_file.is_slight(missing)):
            raise ImageError(_cut(missing))
        notes.append(f"The file is truncated: {missing}.")
    elif not opened.ended:
        notes.append("The JPEG lacks its end marker.")
    if stored and not missing:
        picture = _with_stored(picture, image, found.data)
    return picture._replace(notes=(*notes, *picture.notes))


def _decode_png(data: bytes, max_pixels: int, salvage: bool) -> Picture:
    opened = png_file.read(data)
    limits.check_size(opened.header.width, opened.header.height, max_pixels)
    notes = list(opened.found.notes)
    missing = "" if opened.ended and not salvage else png_file.missing(opened)
    if missing and not salvage:
        raise ImageError(_cut(missing))
    if missing or not opened.ended:
        opened = png_file.completed(opened)
        notes.append(
            f"The file is truncated: {missing}."
            if missing
            else "The PNG lacks its end."
        )
    with Image.open(io.BytesIO(opened.found.data), formats=["PNG"]) as image:
        try:
            image.load()
        except OSError:  # rows can be missing although the file has its end
            if missing := png_file.missing(opened):
                raise ImageError(_cut(missing)) from None
            raise
        pixels = png_file.pixels(opened, image)
        picture = _picture(image, opened.found.metadata, pixels)
    return picture._replace(notes=tuple(notes))


def _decode_tiff(data: bytes, max_pixels: int) -> Picture:
    errors: list[str] = []
    opened = tiff_file.read(data)
    limits.check_size(*tiff_file.size(opened), max_pixels)
    found = opened.found
    if (own := tiff_file.pixels(opened)) is not None:
        pixels, alpha = own
        picture = Picture(pixels, metadata=found.metadata)
        if alpha:
            picture = picture._replace(pixels=pixels[..., :-1], alpha=pixels[..., -1])
    else:
        with (
            native.libtiff() as errors,
            Image.open(io.BytesIO(found.data), formats=["TIFF"]) as image,
        ):
            _check(image, max_pixels)
            image.load()
            picture = _picture(image, found.metadata)
        if found.data is data:  # Pillow found the orientation in it, and applied it
            picture, _ = _reset_orientation(picture)
    damage = ("libtiff reports that the picture is damaged.",) if errors else ()
    return picture._replace(notes=(*found.notes, *damage))


def _decode_heif(data: bytes, max_pixels: int, kind: str) -> Picture:
    if kind == "avif":
        opened, orientation = heif_file.read_avif(data, max_pixels)
        picture = _of_stack(*opened)
        if orientation in _TURNS:
            picture = _turned(picture, orientation)
    else:
        picture = _of_stack(*heif_file.read_heic(data, max_pixels))
    return _without_claims(picture)


def _decode_jxl(data: bytes, max_pixels: int, stored: bool, salvage: bool) -> Picture:
    opened = jxl_file.read(data, max_pixels)
    if opened.jpeg:
        return _decode_jpeg(opened.jpeg, max_pixels, stored, salvage)
    return _without_claims(_of_stack(opened.stack, opened.metadata))


def _of_stack(
    stack: np.ndarray, meta: Metadata, notes: tuple[str, ...] = ()
) -> Picture:
    """Makes a picture of a stack of gray or RGB channels.

    If there are two or four channels, the last is alpha.
    """
    alpha = None
    if stack.shape[-1] in (2, 4):
        stack, alpha = stack[..., :-1], stack[..., -1]
    return Picture(stack, alpha, metadata=meta, notes=notes)


def _without_claims(picture: Picture) -> Picture:
    """Removes claims in the XMP about parts of the file that aren't carried over."""
    xmp, notes = xmp_packets.without_claims(picture.metadata.xmp)
    meta = picture.metadata._replace(xmp=xmp)
    return picture._replace(metadata=meta, notes=picture.notes + notes)


def _cut(missing: str) -> str:
    return f"damaged or truncated: {missing}; --salvage restores what is there"


def _with_stored(picture: Picture, image: Image.Image, data: bytes) -> Picture:
    """Adds the DCT coefficients in the bytes of a gray or YCbCr JPEG."""
    if isinstance(image, JpegImagePlugin.JpegImageFile) and _is_ycbcr(image):
        height, width = picture.pixels.shape[:2]
        stored, warnings = coefficients.read(data, height, width, image.quantization)
        notes = jpeg_file.notes_of(warnings, data)
        return picture._replace(stored=stored, notes=picture.notes + notes)
    return picture


def _is_ycbcr(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Returns whether an opened JPEG is gray or stores Y, Cb and Cr.

    Some JPEGs store RGB.
    """
    names = bytes(layer[0] for layer in image.layer)
    return names != b"RGB" and (
        len(image.layer) == 1
        or (len(image.layer) == 3 and image.info.get("adobe_transform", 1) == 1)
    )


def encode(picture: Picture, name: str, quality: int = 95) -> bytes:
    """Encodes a picture as a file, with the metadata that the format supports.

    PNG, WebP and TIFF are lossless. JPEG has chroma at full resolution. `fitted`
    changes or drops the parts that the format can't hold.

    Args:
      picture: picture to write.
      name: name of a format in `formats.FORMATS`.
      quality: quality factor of a JPEG, 1 to 100.

    Raises:
      ImageError: if the format can't hold the picture; see `check`.
    """
    picture = fitted(picture, name)
    try:
        if name == "png":
            return png_file.encode(picture)
        if name == "tiff":
            return tiff_file.encode(picture)
        buffer = io.BytesIO()
        options = _options(name, picture.metadata, quality)
        to_pillow(picture).save(buffer, name, **options)
        if name == "jpeg":
            return jpeg_file.with_texts(buffer.getvalue(), picture.metadata)
        return buffer.getvalue()
    except Exception as error:  # unusual metadata can cause any error in the libraries
        raise ImageError(f"can't be written as {name}: {error}") from None


def fitted(picture: Picture, name: str) -> Picture:
    """Converts a picture to one that a format can hold, and notes dropped metadata.

    JPEG and TIFF keep CMYK. In other formats it becomes RGB, by its profile if it has
    one. Of the metadata, BMP holds only the resolution, WebP holds all but resolution,
    IPTC and comments, and TIFF holds all but the camera's own notes (MakerNote). In
    PNG, WebP and BMP the picture is turned upright, because many viewers ignore their
    orientation. In formats other than PNG, the colour chunks of a PNG become a profile.

    Args:
      picture: picture to write. A picture that already fits is unchanged.
      name: name of a format in `formats.FORMATS`.

    Raises:
      ImageError: if the format can't hold the picture; see `check`.
    """
    check(picture, name)
    if name in ("png", "webp", "bmp"):
        picture = upright(picture)
    meta = picture.metadata
    if picture.pixels.shape[-1] == 1 and name == "webp":  # it has no gray
        picture = picture._replace(pixels=np.repeat(picture.pixels, 3, axis=-1))
        if meta.icc_profile[16:20] == b"GRAY":
            meta = meta._replace(icc_profile=b"")
            note = (
                "The colour profile was dropped: it is for gray, which WebP can't hold."
            )
            picture = picture._replace(notes=(*picture.notes, note))
    if picture.pixels.shape[-1] == 4 and name not in ("jpeg", "tiff"):
        rgb = to_rgb(to_pillow(picture._replace(alpha=None)), meta)
        picture = picture._replace(pixels=np.asarray(rgb))
        meta = meta._replace(icc_profile=b"")
    if name != "png":
        profile = meta.icc_profile or _profile(picture, name)
        meta = meta._replace(icc_profile=profile, colour=())
    meta, notes = metadata.fitted(meta, name)
    return picture._replace(metadata=meta, notes=picture.notes + notes)


def _profile(picture: Picture, name: str) -> bytes:
    """Returns the colour profile equivalent to a PNG's chunks, if one is needed."""
    chunks = picture.metadata.colour
    if name == "bmp" and {b"sRGB"} == {x for x, _ in chunks} - {b"gAMA", b"cHRM"}:
        return b""  # BMP implies sRGB
    return profiles.of_chunks(chunks, picture.pixels.shape[-1] == 1)


def fallback(
    picture: Picture, name: str, dtype: np.typing.DTypeLike | None = None
) -> str:
    """Chooses the format in which to write a picture if none is requested.

    Args:
      picture, dtype: as in `check`.
      name: name of the preferred format, such as that of the input file.

    Returns:
      `name`, or 'png' if that format can't hold the picture.
    """
    try:
        check(picture, name, dtype)
    except ImageError:
        return "png"
    return name


def check(
    picture: Picture, name: str, dtype: np.typing.DTypeLike | None = None
) -> None:
    """Checks that a format can hold a picture.

    Args:
      picture: picture to write, before or after restoration.
      name: name of a format in `formats.FORMATS`.
      dtype: dtype of the pixels to write; None for that of the picture.

    Raises:
      ImageError: if the format can't hold the size, the transparency, the 16 bits or
        the colours of the picture.
    """
    has_alpha, channels = picture.alpha is not None, picture.pixels.shape[-1]
    dtype = np.dtype(dtype or picture.pixels.dtype)
    take = "take --format=png"
    if (side := max(picture.pixels.shape[:2])) > (longest := _SIDES.get(name, side)):
        raise ImageError(f"{side} pixels long, {name} can hold {longest}; {take}")
    if has_alpha and name in ("jpeg", "bmp"):
        raise ImageError(f"has transparency, which {name} can't hold; {take}")
    size = picture.pixels.size // channels * (channels + has_alpha) * dtype.itemsize
    if name == "tiff" and size > tiff_file.LONGEST:
        raise ImageError(f"{size / 1e9:.1f} GB, tiff can hold 4; {take}")
    if name != "png" and not picture.metadata.icc_profile:
        _profile(picture, name)
    if dtype == np.uint8:
        return
    if name not in ("png", "tiff"):
        raise ImageError(
            f"16 bits are more than {name} can hold; take --format=png or "
            "--format=tiff, or --bits=8"
        )
    if channels == 4:
        raise ImageError("CMYK is written with 8 bits only; take --bits=8")


def _check(image: Image.Image, max_pixels: int) -> None:
    limits.check_size(image.width, image.height, max_pixels)
    limits.check_frames(getattr(image, "n_frames", 1))


def from_pillow(image: Image.Image, stored: bool = False) -> Picture:
    """Converts a Pillow image to a picture.

    Args:
      image: Pillow image, from `Image.open` or elsewhere.
      stored: whether to read the DCT coefficients of a JPEG too. They are read only if
        the image is not loaded yet, because later its pixels may differ from those of
        the file.

    Raises:
      ImageError: if the image is damaged, or its colours are neither gray nor RGB nor
        CMYK.
    """
    if not (image.width and image.height):
        raise ImageError("has no pixels")
    clear = image.format == "PNG" and "transparency" in image.info
    if clear and image.mode in ("I", "I;16"):
        raise ImageError("Pillow has no 16-bit gray with transparency; use cqr-restore")
    if clear and image.mode in ("1", "L") and (data := _file(image)):
        return decode(data, image.width * image.height)  # Pillow misreads which gray
    is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    data = _file(image) if stored and is_jpeg else b""
    with image_errors():
        image.load()  # also reads metadata after the pixels of a PNG
    picture = _picture(image)
    return _with_stored(picture, image, data) if data else picture


def _file(image: Image.Image) -> bytes:
    """Returns the bytes of the file of an image that is not loaded yet, or b''."""
    file = getattr(image, "fp", None)
    if file is None:
        return b""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def to_pillow(picture: Picture) -> Image.Image:
    """Converts a picture of 8 bits, or of 16-bit gray, to a Pillow image.

    Raises:
      ImageError: if a picture of 16 bits per channel is not gray.
    """
    pixels = picture.stacked()
    if pixels.dtype == np.uint16 and pixels.shape[-1] > 1:
        raise ImageError("Pillow has 16 bits for gray alone")
    if picture.pixels.shape[-1] == 4:
        return Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes())
    return Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0])


def upright(picture: Picture) -> Picture:
    """Turns a picture upright by its EXIF orientation, which becomes 1.

    The thumbnail is removed, and the rest of EXIF is unchanged. A picture without an
    orientation, or with unreadable EXIF, is unchanged. Compression and stored
    coefficients remain those of the file.
    """
    found, orientation = _reset_orientation(picture)
    return _turned(found, orientation) if orientation else picture


def _reset_orientation(picture: Picture) -> tuple[Picture, int]:
    """Sets the EXIF orientation to 1; returns the picture and its orientation before.

    Without an orientation to turn by, the picture is unchanged, and the result 0.
    """
    try:
        (orientation,) = exif.read(picture.metadata.exif).numbers(exif.ORIENTATION)
        transposed, _ = _TURNS[orientation]
        meta = metadata.turned(picture.metadata, transposed)
    except (ValueError, LookupError):
        return picture, 0
    return picture._replace(metadata=meta), orientation


def _turned(picture: Picture, orientation: int) -> Picture:
    """Turns the pixels of a picture upright from an EXIF orientation."""
    transposed, (down, across) = _TURNS[orientation]

    def turned(values: np.ndarray) -> np.ndarray:
        return (values.swapaxes(0, 1) if transposed else values)[::down, ::across]

    return picture._replace(
        pixels=turned(picture.pixels),
        alpha=None if picture.alpha is None else turned(picture.alpha),
    )


def _picture(
    image: Image.Image,
    meta: Metadata | None = None,
    pixels: np.ndarray | None = None,
) -> Picture:
    """Makes a picture of a Pillow image.

    Metadata and pixels (including alpha) replace those of the image if given.

    Raises:
      ImageError: if a quantisation step of a JPEG is 0.
    """
    compression = None
    if isinstance(image, JpegImagePlugin.JpegImageFile) and not is_reduced(image):
        (_, across, down, table), *others = image.layer
        compression = Compression(tuple(image.quantization[table]))
        if others:
            (_, across_1, down_1, table_1) = others[0]
            compression = Compression(
                compression.luma,
                tuple(image.quantization[table_1]),
                (max(1, down // down_1), max(1, across // across_1)),
            )
        if not all(compression.luma + (compression.chroma or ())):
            raise ImageError("damaged: a quantisation step of the JPEG is 0")
    if pixels is None:
        pixels = _pixels(image)
    alpha = None
    if pixels.shape[-1] in (2, 4) and image.mode != "CMYK":
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
    return Picture(pixels, alpha, compression, metadata=meta or _metadata(image))


def is_reduced(image: Image.Image) -> bool:
    """Returns whether `Image.draft` or `Image.thumbnail` can have reduced a JPEG."""
    return bool(getattr(image, "decoderconfig", ()))


def _pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels as gray, gray with alpha, RGB, RGBA or CMYK."""
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


def _metadata(image: Image.Image) -> Metadata:
    """Returns the metadata that Pillow read."""
    info = image.info
    found = exif.named(info.get("exif", b""))  # a WebP may lack the prefix
    xmp = info.get("xmp", b"")
    dpi = info.get("dpi")
    return Metadata(
        found,
        info.get("icc_profile") or b"",
        xmp.encode() if isinstance(xmp, str) else xmp,
        metadata.resolution(*dpi) if dpi else None,
    )


def to_rgb(image: Image.Image, meta: Metadata) -> Image.Image:
    """Converts an image to RGB; converts CMYK by its colour profile, if it has one."""
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
            pass  # not a CMYK profile: convert as if there were none
    return image.convert("RGB")


def _options(name: str, meta: Metadata, quality: int) -> dict:
    """Returns Pillow's options to write a picture with metadata from `fitted`."""
    named = {"exif": meta.exif, "icc_profile": meta.icc_profile, "xmp": meta.xmp}
    options: dict = {key: value for key, value in named.items() if value}
    if meta.dpi:
        options["dpi"] = meta.dpi
    if name == "jpeg":
        options |= {"quality": quality, "subsampling": 0}
    elif name == "webp":
        options |= {"lossless": True, "quality": 50, "exact": True}  # 50: the effort
    return options
