"""The writing systems that the data path distinguishes, as half-open ranges of code points."""

IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x323B0))
# With 々〆〇, which are read like ideographs. Windows leave them out: 々 may be put anywhere.
HAN = ((0x3005, 0x3008), *IDEOGRAPHS)
KANA = ((0x3041, 0x3097), (0x30A1, 0x30FB), (0xFF66, 0xFF9E))
HANGUL = ((0x1100, 0x1200), (0x3130, 0x3190), (0xAC00, 0xD7B0))
