"""Finds what moved between two frames and publishes one event for each object."""

import cv2
import numpy
from ion import DATA, OUT, publish, values

SMALLEST = 0.015  # part of the picture's area: anything smaller is noise, leaves or compression
MOST = 4  # the number of objects that are published of one frame, the largest first

now_file = next(DATA.glob("*-now.png"))
now = cv2.imread(str(now_file))
before = cv2.imread(str(next(DATA.glob("*-before.png"))))
frame = values()["frame"]

moved = cv2.absdiff(cv2.GaussianBlur(now, (5, 5), 0), cv2.GaussianBlur(before, (5, 5), 0)).max(axis=2)
mask = (moved > 22).astype(numpy.uint8) * 255
mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, numpy.ones((3, 3)))
# The moving parts of one object are grown until they touch.
mask = cv2.dilate(mask, numpy.ones((21, 15)))
contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
boxes = [cv2.boundingRect(contour) for contour in contours]
height, width = now.shape[:2]
boxes = [box for box in boxes if SMALLEST < box[2] * box[3] / (width * height) < 0.6]
boxes.sort(key=lambda box: box[2] * box[3], reverse=True)

# A hard link from in/data to out/data passes the frame on without moving a byte.
(OUT / "frame.png").hardlink_to(now_file)
for number, (x, y, w, h) in enumerate(boxes[:MOST]):
    publish(f"object-{number}", "object", ["frame.png"], frame=frame, x=x, y=y, width=w, height=h)
print(f"frame {frame}: {len(boxes)} moving objects")
