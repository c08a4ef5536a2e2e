package store

import (
	"bytes"
	"encoding/binary"
	"testing"
	"unicode/utf16"

	"github.com/smolvmm/smolvmm/builder/spec"
)

// patch is bytes at a place of a disk.
type patch struct {
	at int
	b  []byte
}

// disk is a disk of so many bytes with patches.
func disk(size int, patches ...patch) []byte {
	d := make([]byte, size)
	for _, p := range patches {
		if p.at >= 0 && p.at < size {
			copy(d[p.at:], p.b)
		}
	}
	return d
}

// gptHeader is as much of one as says where the entries are (UEFI 2.10, table 5.5).
func gptHeader(lba uint64, size uint32) []byte {
	h := make([]byte, 92)
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	binary.LittleEndian.PutUint64(h[72:], lba)
	binary.LittleEndian.PutUint32(h[80:], 128)
	binary.LittleEndian.PutUint32(h[84:], size)
	return h
}

// gptEntry is a partition with a name (table 5.6).
func gptEntry(name string) []byte {
	e := make([]byte, 128)
	copy(e, "a type's GUID")
	for i, c := range utf16.Encode([]rune(name)) {
		binary.LittleEndian.PutUint16(e[56+2*i:], c)
	}
	return e
}

const sniffed = 68 << 10 // bytes of a disk that are looked at

// sniffs are disks by what they are.
func sniffs() map[string][]struct {
	disk []byte
	root string
} {
	ufs2, ufs1 := []byte{0x19, 0x01, 0x54, 0x19}, []byte{0x54, 0x19, 0x01, 0x00}
	type d = struct {
		disk []byte
		root string
	}
	return map[string][]d{
		spec.LayoutGPT: {
			{disk(sniffed, patch{512, gptHeader(2, 128)}, patch{1024, gptEntry("webroot")}), "NAME=webroot"},
			{disk(sniffed, patch{512, gptHeader(2, 128)}, patch{1024 + 2*128, gptEntry("third")}), "NAME=third"},
			{disk(sniffed, patch{512, gptHeader(127, 256)}, patch{127*512 + 256, gptEntry("far")}), "NAME=far"},
			{disk(sniffed, patch{512, gptHeader(2, 128)}, patch{1024, gptEntry("a b")}, patch{1024 + 128, gptEntry("second")}), "NAME=second"},
			{disk(sniffed, patch{512, gptHeader(2, 128)}, patch{1024, gptEntry("single user -s")}), "dk0"},
			{disk(sniffed, patch{512, gptHeader(1<<63, 1<<31)}), "dk0"},
			{disk(sniffed, patch{512, gptHeader(2, 0)}, patch{1024, gptEntry("x")}), "dk0"},
			{disk(520, patch{512, []byte("EFI PART")}), "dk0"},
		},
		spec.LayoutFFS: {
			{disk(sniffed, patch{64<<10 + 1372, ufs2}), "ld0a"}, {disk(sniffed, patch{8<<10 + 1372, ufs1}), "ld0a"}, {disk(2048, patch{1372, ufs1}), "ld0a"},
		},
		spec.LayoutExt2: {{disk(sniffed, patch{1080, []byte{0x53, 0xef}}), "ld0a"}},
		spec.LayoutRaw: {
			{nil, "ld0a"}, {disk(sniffed), "ld0a"}, {disk(64<<10+1374, patch{64<<10 + 1372, ufs2}), "ld0a"},
			{disk(sniffed, patch{64<<10 + 1372, []byte{0x19, 0x54, 0x01, 0x19}}), "ld0a"},
		},
	}
}

// TestSniff: what a disk is that nobody describes.
func TestSniff(t *testing.T) {
	for layout, disks := range sniffs() {
		for i, d := range disks {
			if l, root := Sniff(bytes.NewReader(d.disk)); l != layout || root != d.root {
				t.Errorf("%s %d: %s, %s; want %s", layout, i, l, root, d.root)
			}
		}
	}
}

// FuzzSniff: no disk has a root that a kernel could not be given.
func FuzzSniff(f *testing.F) {
	f.Add(512, gptHeader(2, 128), 1024, gptEntry("webroot"), sniffed)
	f.Add(512, gptHeader(3, 4096), 1536+4096, gptEntry("x\x00y"), 8192)
	f.Add(512, gptHeader(127, 256), 127*512+256, gptEntry("root=ld1a -s"), sniffed)
	f.Add(64<<10+1372, []byte{0x19, 0x01, 0x54, 0x19}, 0, []byte{0xeb}, sniffed)
	f.Add(8<<10+1372, []byte{0x54, 0x19, 0x01, 0x00}, 1080, []byte{0x53, 0xef}, 10<<10)
	f.Fuzz(func(t *testing.T, at int, b []byte, to int, c []byte, size int) {
		layout, root := Sniff(bytes.NewReader(disk(max(0, min(size, 80<<10)), patch{at, b}, patch{to, c})))
		if err := spec.CheckRoot(root); err != nil {
			t.Fatal(err)
		}
		img := spec.Image{Architecture: "amd64", OS: "netbsd", Disk: spec.Disk{Digest: "sha256:" + hex64, Size: 512, Layout: layout, Root: root}}
		if _, err := img.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
