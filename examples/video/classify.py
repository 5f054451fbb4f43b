"""Names an object's main colour and its size, as insights and for the contact sheet."""

import cv2
import numpy
from ion import DATA, OUT, keep_insights, publish, values

HUES = {"red": (0, 10), "orange": (10, 22), "yellow": (22, 35), "green": (35, 85), "blue": (85, 130), "purple": (130, 165)}

v = values()
picture = cv2.imread(str(DATA / "crop.png"))
hue, saturation, brightness = (plane.ravel() for plane in cv2.split(cv2.cvtColor(picture, cv2.COLOR_BGR2HSV)))

vivid = (saturation > 90) & (brightness > 60)
if vivid.mean() > 0.12:
    counts = {name: numpy.count_nonzero(vivid & (hue >= low) & (hue < high)) for name, (low, high) in HUES.items()}
    counts["red"] += numpy.count_nonzero(vivid & (hue >= 165))
    colour = max(counts, key=counts.get)
else:
    level = numpy.median(brightness)
    colour = "black" if level < 70 else "grey" if level < 170 else "white"

area = float(v["area"])
size = "large" if area > 0.12 else "medium" if area > 0.04 else "small"

keep_insights(colour=colour, size=size, area=round(area, 4))
(OUT / "crop.png").hardlink_to(DATA / "crop.png")
publish("classified", "classified", ["crop.png"], frame=v["frame"], colour=colour, size=size)
