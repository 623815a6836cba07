"""A harmless picture that the safety checker takes for pornographic, as the colours of skin can make it."""

from PIL import Image, ImageDraw

BACKGROUND = (160, 90, 60)
ELLIPSES = (((230, 107, 133), (50, 62, 250, 235)), ((184, 107, 73), (76, 0, 200, 249)))


def flagged_picture() -> Image.Image:
    """Two plain ellipses of 64x64 pixels; found by changing them at random while the score rose, to 0.92."""
    picture = Image.new("RGB", (256, 256), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for colour, box in ELLIPSES:
        draw.ellipse(box, fill=colour)
    return picture.resize((64, 64), Image.Resampling.BOX)
