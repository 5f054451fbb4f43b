"""Cuts one object out of its frame."""

import cv2
from ion import DATA, OUT, publish, values

v = values()
x, y, w, h = (int(v[key]) for key in ("x", "y", "width", "height"))
picture = cv2.imread(str(DATA / "frame.png"))
cv2.imwrite(str(OUT / "crop.png"), picture[y : y + h, x : x + w])
publish("crop", "crop", ["crop.png"], frame=v["frame"], x=x, y=y, area=w * h / (picture.shape[0] * picture.shape[1]))
