"""Colours and class names of the published palettes: a row `RED GREEN BLUE NAME` for each class.

| table | source |
|---|---|
| `VOC` | mmsegmentation 1.2.2, `voc_palette`; `palettes` computes the same colours by the formula |
| `CITYSCAPES`, `CITYSCAPES_VOID` | cityscapesScripts, `helpers/labels.py` |
| `ADE20K` | mmsegmentation 1.2.2, `ade_palette` |
| `COCOSTUFF` | mmsegmentation 1.2.2, `cocostuff_palette` |
| `CAMVID` | SegNet-Tutorial, `Scripts/test_segmentation_camvid.py` |
| `PASCAL_CONTEXT` | mmsegmentation 1.2.2, `PascalContextDataset` |
| `OKABE_ITO` | M. Okabe and K. Ito, Color Universal Design, 2008 |

COCO-Stuff and Pascal-Context define no colours. Those of Pascal-Context in mmsegmentation are the
first 60 of ADE20K. The names are those of the sources, without the space behind `bed ` of ADE20K.
Colours without a data set are named after themselves.
"""

VOC = """
0 0 0 background
128 0 0 aeroplane
0 128 0 bicycle
128 128 0 bird
0 0 128 boat
128 0 128 bottle
0 128 128 bus
128 128 128 car
64 0 0 cat
192 0 0 chair
64 128 0 cow
192 128 0 diningtable
64 0 128 dog
192 0 128 horse
64 128 128 motorbike
192 128 128 person
0 64 0 pottedplant
128 64 0 sheep
0 192 0 sofa
128 192 0 train
0 64 128 tvmonitor
"""

# The evaluated classes in the order of their train ids.
CITYSCAPES = """
128 64 128 road
244 35 232 sidewalk
70 70 70 building
102 102 156 wall
190 153 153 fence
153 153 153 pole
250 170 30 traffic light
220 220 0 traffic sign
107 142 35 vegetation
152 251 152 terrain
70 130 180 sky
220 20 60 person
255 0 0 rider
0 0 142 car
0 0 70 truck
0 60 100 bus
0 80 100 train
0 0 230 motorcycle
119 11 32 bicycle
"""

# The classes that Cityscapes annotates but does not evaluate, in the colours of *_color.png. Those
# in black are missing; so are the polegroup, which has the colour of poles, and the licence plate,
# which has that of cars and does not occur in the files.
CITYSCAPES_VOID = """
111 74 0 dynamic
81 0 81 ground
250 170 160 parking
230 150 140 rail track
180 165 180 guard rail
150 100 100 bridge
150 120 90 tunnel
0 0 90 caravan
0 0 110 trailer
"""

ADE20K = """
120 120 120 wall
180 120 120 building
6 230 230 sky
80 50 50 floor
4 200 3 tree
120 120 80 ceiling
140 140 140 road
204 5 255 bed
230 230 230 windowpane
4 250 7 grass
224 5 255 cabinet
235 255 7 sidewalk
150 5 61 person
120 120 70 earth
8 255 51 door
255 6 82 table
143 255 140 mountain
204 255 4 plant
255 51 7 curtain
204 70 3 chair
0 102 200 car
61 230 250 water
255 6 51 painting
11 102 255 sofa
255 7 71 shelf
255 9 224 house
9 7 230 sea
220 220 220 mirror
255 9 92 rug
112 9 255 field
8 255 214 armchair
7 255 224 seat
255 184 6 fence
10 255 71 desk
255 41 10 rock
7 255 255 wardrobe
224 255 8 lamp
102 8 255 bathtub
255 61 6 railing
255 194 7 cushion
255 122 8 base
0 255 20 box
255 8 41 column
255 5 153 signboard
6 51 255 chest of drawers
235 12 255 counter
160 150 20 sand
0 163 255 sink
140 140 140 skyscraper
250 10 15 fireplace
20 255 0 refrigerator
31 255 0 grandstand
255 31 0 path
255 224 0 stairs
153 255 0 runway
0 0 255 case
255 71 0 pool table
0 235 255 pillow
0 173 255 screen door
31 0 255 stairway
11 200 200 river
255 82 0 bridge
0 255 245 bookcase
0 61 255 blind
0 255 112 coffee table
0 255 133 toilet
255 0 0 flower
255 163 0 book
255 102 0 hill
194 255 0 bench
0 143 255 countertop
51 255 0 stove
0 82 255 palm
0 255 41 kitchen island
0 255 173 computer
10 0 255 swivel chair
173 255 0 boat
0 255 153 bar
255 92 0 arcade machine
255 0 255 hovel
255 0 245 bus
255 0 102 towel
255 173 0 light
255 0 20 truck
255 184 184 tower
0 31 255 chandelier
0 255 61 awning
0 71 255 streetlight
255 0 204 booth
0 255 194 television receiver
0 255 82 airplane
0 10 255 dirt track
0 112 255 apparel
51 0 255 pole
0 194 255 land
0 122 255 bannister
0 255 163 escalator
255 153 0 ottoman
0 255 10 bottle
255 112 0 buffet
143 255 0 poster
82 0 255 stage
163 255 0 van
255 235 0 ship
8 184 170 fountain
133 0 255 conveyer belt
0 255 92 canopy
184 0 255 washer
255 0 31 plaything
0 184 255 swimming pool
0 214 255 stool
255 0 112 barrel
92 255 0 basket
0 224 255 waterfall
112 224 255 tent
70 184 160 bag
163 0 255 minibike
153 0 255 cradle
71 255 0 oven
255 0 163 ball
255 204 0 food
255 0 143 step
0 255 235 tank
133 255 0 trade name
255 0 235 microwave
245 0 255 pot
255 0 122 animal
255 245 0 bicycle
10 190 212 lake
214 255 0 dishwasher
0 204 255 screen
20 0 255 blanket
255 255 0 sculpture
0 153 255 hood
0 41 255 sconce
0 255 204 vase
41 0 255 traffic light
41 255 0 tray
173 0 255 ashcan
0 245 255 fan
71 0 255 pier
122 0 255 crt screen
0 255 184 plate
0 92 255 monitor
184 255 0 bulletin board
0 133 255 shower
255 214 0 radiator
25 194 194 glass
102 255 0 clock
92 0 255 flag
"""

COCOSTUFF = """
0 192 64 person
0 192 64 bicycle
0 64 96 car
128 192 192 motorcycle
0 64 64 airplane
0 192 224 bus
0 192 192 train
128 192 64 truck
0 192 96 boat
128 192 64 traffic light
128 32 192 fire hydrant
0 0 224 stop sign
0 0 64 parking meter
0 160 192 bench
128 0 96 bird
128 0 192 cat
0 32 192 dog
128 128 224 horse
0 0 192 sheep
128 160 192 cow
128 128 0 elephant
128 0 32 bear
128 32 0 zebra
128 0 128 giraffe
64 128 32 backpack
0 160 0 umbrella
0 0 0 handbag
192 128 160 tie
0 32 0 suitcase
0 128 128 frisbee
64 128 160 skis
128 160 0 snowboard
0 128 0 sports ball
192 128 32 kite
128 96 128 baseball bat
0 0 128 baseball glove
64 0 32 skateboard
0 224 128 surfboard
128 0 0 tennis racket
192 0 160 bottle
0 96 128 wine glass
128 128 128 cup
64 0 160 fork
128 224 128 knife
128 128 64 spoon
192 0 32 bowl
128 96 0 banana
128 0 192 apple
0 128 32 sandwich
64 224 0 orange
0 0 64 broccoli
128 128 160 carrot
64 96 0 hot dog
0 128 192 pizza
0 128 160 donut
192 224 0 cake
0 128 64 chair
128 128 32 couch
192 32 128 potted plant
0 64 192 bed
0 0 32 dining table
64 160 128 toilet
128 64 64 tv
128 0 160 laptop
64 32 128 mouse
128 192 192 remote
0 0 160 keyboard
192 160 128 cell phone
128 192 0 microwave
128 0 96 oven
192 32 0 toaster
128 64 128 sink
64 128 96 refrigerator
64 160 0 book
0 64 0 clock
192 128 224 vase
64 32 0 scissors
0 192 128 teddy bear
64 128 224 hair drier
192 160 0 toothbrush
0 192 0 banner
192 128 96 blanket
192 96 128 branch
0 64 128 bridge
64 0 96 building-other
64 224 128 bush
128 64 0 cabinet
192 0 224 cage
64 96 128 cardboard
128 192 128 carpet
64 0 224 ceiling-other
192 224 128 ceiling-tile
128 192 64 cloth
192 0 96 clothes
192 96 0 clouds
128 64 192 counter
0 128 96 cupboard
0 224 0 curtain
64 64 64 desk-stuff
128 128 224 dirt
0 96 0 door-stuff
64 192 192 fence
0 128 224 floor-marble
128 224 0 floor-other
64 192 64 floor-stone
128 128 96 floor-tile
128 32 128 floor-wood
64 0 192 flower
0 64 96 fog
0 160 128 food-other
192 0 64 fruit
128 64 224 furniture-other
0 32 128 grass
192 128 192 gravel
0 64 224 ground-other
128 160 128 hill
192 128 0 house
128 64 32 leaves
128 32 64 light
192 0 128 mat
64 192 32 metal
0 160 64 mirror-stuff
64 0 0 moss
192 192 160 mountain
0 32 64 mud
64 128 128 napkin
64 192 160 net
128 160 64 paper
64 128 0 pavement
192 192 32 pillow
128 96 192 plant-other
64 0 128 plastic
64 64 32 platform
0 224 192 playingfield
192 0 0 railing
192 64 160 railroad
0 96 192 river
192 128 128 road
64 64 160 rock
128 224 192 roof
192 128 64 rug
192 64 32 salad
128 96 64 sand
192 0 192 sea
0 192 32 shelf
64 224 64 sky-other
64 0 64 skyscraper
128 192 160 snow
64 96 64 solid-other
64 128 192 stairs
0 192 160 stone
192 224 64 straw
64 128 64 structural-other
128 192 32 table
192 32 192 tent
64 64 192 textile-other
0 64 32 towel
64 160 192 tree
192 64 64 vegetable
128 64 160 wall-brick
64 32 192 wall-concrete
192 192 192 wall-other
0 64 160 wall-panel
192 160 192 wall-stone
192 192 0 wall-tile
128 64 96 wall-wood
192 32 64 water-other
192 64 128 waterdrops
64 192 96 window-blind
64 160 64 window-other
64 64 0 wood
"""

CAMVID = """
128 128 128 Sky
128 0 0 Building
192 192 128 Pole
128 64 128 Road
60 40 222 Pavement
128 128 0 Tree
192 128 128 SignSymbol
64 64 128 Fence
64 0 128 Car
64 64 0 Pedestrian
0 128 192 Bicyclist
"""

PASCAL_CONTEXT = """
120 120 120 background
180 120 120 aeroplane
6 230 230 bag
80 50 50 bed
4 200 3 bedclothes
120 120 80 bench
140 140 140 bicycle
204 5 255 bird
230 230 230 boat
4 250 7 book
224 5 255 bottle
235 255 7 building
150 5 61 bus
120 120 70 cabinet
8 255 51 car
255 6 82 cat
143 255 140 ceiling
204 255 4 chair
255 51 7 cloth
204 70 3 computer
0 102 200 cow
61 230 250 cup
255 6 51 curtain
11 102 255 dog
255 7 71 door
255 9 224 fence
9 7 230 floor
220 220 220 flower
255 9 92 food
112 9 255 grass
8 255 214 ground
7 255 224 horse
255 184 6 keyboard
10 255 71 light
255 41 10 motorbike
7 255 255 mountain
224 255 8 mouse
102 8 255 person
255 61 6 plate
255 194 7 platform
255 122 8 pottedplant
0 255 20 road
255 8 41 rock
255 5 153 sheep
6 51 255 shelves
235 12 255 sidewalk
160 150 20 sign
0 163 255 sky
140 140 140 snow
250 10 15 sofa
20 255 0 table
31 255 0 track
255 31 0 train
255 224 0 tree
153 255 0 truck
0 0 255 tvmonitor
255 71 0 wall
0 235 255 water
0 173 255 window
31 0 255 wood
"""

OKABE_ITO = """
0 0 0 black
230 159 0 orange
86 180 233 sky blue
0 158 115 bluish green
240 228 66 yellow
0 114 178 blue
213 94 0 vermilion
204 121 167 reddish purple
"""
