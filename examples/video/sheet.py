"""Draws one contact sheet of all classified objects of a clip."""

import json

import cv2
import numpy
from ion import DATA, ION, OUT, publish

COLUMNS, CELL, LABEL, GAP = 6, 150, 34, 10

objects = json.loads((ION / "in" / "events.json").read_text())
# The files of the nth gathered event are in in/data/n.
cells = [(event["data"], cv2.imread(str(DATA / str(n) / "crop.png"))) for n, event in enumerate(objects)]
# Sorted by frame and size, so that the picture is the same in whatever order the events came.
cells.sort(key=lambda cell: (cell[0]["frame"], -cell[1].size, cell[1].tobytes()))

columns = max(1, min(COLUMNS, len(cells)))
rows = max(1, -(-len(cells) // columns))
sheet = numpy.full((rows * (CELL + LABEL + GAP) + GAP, columns * (CELL + GAP) + GAP, 3), 32, numpy.uint8)


def write(text, x, y, grey=230):
    cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (grey,) * 3, 1, cv2.LINE_AA)


if not cells:
    write("nothing moved", GAP, GAP + 20)
for number, (data, picture) in enumerate(cells):
    left = GAP + number % columns * (CELL + GAP)
    top = GAP + number // columns * (CELL + LABEL + GAP)
    scale = CELL / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    sheet[top + (CELL - h) // 2 :, left + (CELL - w) // 2 :][:h, :w] = small
    write(f"{data['size']} {data['colour']}", left, top + CELL + 14)
    write(f"frame {data['frame']}", left, top + CELL + 29, 150)

cv2.imwrite(str(OUT / "sheet.png"), sheet)
publish("sheet", "contact_sheet", ["sheet.png"], objects=len(cells))
print(f"{len(cells)} objects on the sheet")
