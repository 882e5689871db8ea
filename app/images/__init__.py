"""Label maps as pictures: palettes, colour maps, rendering."""
