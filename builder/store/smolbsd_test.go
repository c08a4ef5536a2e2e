package store

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestSmolBSD loads what `oras push --artifact-type application/vnd.smolbsd.image
// images/x-amd64.img:application/x-raw-disk-image` makes, of both forms that oras
// has had.
func TestSmolBSD(t *testing.T) {
	disk := make([]byte, 100<<10+56) // smolBSD appends its own mark
	copy(disk[64<<10+1372:], []byte{0x19, 0x01, 0x54, 0x19})
	copy(disk[100<<10:], "smolsig:01/01/2026|0000")
	for form, m := range map[string]Manifest{
		"oras 1.1 and later": {MediaType: TypeManifest, ArtifactType: ArtifactType, Config: describe(TypeEmpty, []byte("{}")),
			Annotations: map[string]string{annotationCreated: "2026-03-15T16:41:00Z"}},
		"oras 1.0": {MediaType: TypeManifest, Config: describe(ArtifactType, []byte("{}")),
			Annotations: map[string]string{annotationCreated: "2026-03-15T16:41:00Z"}},
	} {
		l := newLay()
		l.add(TypeEmpty, []byte("{}"))
		d := l.add(TypeRawDisk, disk)
		d.Annotations = map[string]string{annotationTitle: "images/rescue-amd64:latest.img"}
		m.Layers = []Descriptor{d}
		l.manifest(m, "rescue-amd64:latest")
		s := open(t)
		all, err := s.Load(t.Context(), bytes.NewReader(l.tar()), LoadOptions{})
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: %v", form, err)
		}
		img := all[0].Image
		if img.Disk.Size != 100<<10+512 || img.Created != "2026-03-15T16:41:00Z" || img.Disk.Root != "ld0a" {
			t.Errorf("%s: %+v", form, img)
		}
		got, err := os.ReadFile(all[0].Disk.Path())
		if err != nil || !bytes.Equal(got, append(bytes.Clone(disk), make([]byte, 512-56)...)) {
			t.Errorf("%s: other bytes, %v", form, err)
		}
		d.Annotations[annotationTitle] = "images/rescue-evbarm-aarch64.img"
		l.idx.Manifests = nil
		l.manifest(m, "x")
		if _, err := open(t).Load(t.Context(), bytes.NewReader(l.tar()), LoadOptions{}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "architecture") {
			t.Errorf("an image for ARM: %v", err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(newHostile().archive())
	h := newHostile()
	h.tree(map[string][]byte{"/a": []byte("content")}, describe("", []byte("content")).Digest[7:])
	f.Add(h.archive())
	l := newLay()
	l.add(TypeEmpty, []byte("{}"))
	l.manifest(Manifest{ArtifactType: ArtifactType, Config: describe(TypeEmpty, []byte("{}")), Layers: []Descriptor{l.add(TypeRawDisk, make([]byte, 600))}}, "bare")
	f.Add(l.tar())
	// A disk's syncs would be all that is measured.
	dir, err := os.MkdirTemp("/dev/shm", "smolvmm-fuzz-")
	if err != nil {
		dir = f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	s, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{newHostile().archive(), h.tar(), l.tar()} {
		if _, err := s.Load(f.Context(), bytes.NewReader(seed), LoadOptions{}); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		all, err := s.Load(t.Context(), bytes.NewReader(archive), LoadOptions{MaxDisk: 1 << 20})
		if err == nil && len(all) == 0 {
			t.Fatal("nothing was loaded, and nothing was wrong")
		}
		for _, e := range all {
			if _, err := s.Resolve(e.ID); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestLoadSparse: a small archive does not become a large file here.
func TestLoadSparse(t *testing.T) {
	name := blobPrefix + strings.Repeat("0", 64)
	block := func(typ byte, name, body string) []byte {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", len(body)))
		h[156] = typ
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return append(append(h, body...), make([]byte, (512-len(body)%512)%512)...)
	}
	pax := ""
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=" + name, "GNU.sparse.realsize=1073741824"} {
		n := len(r) + 4 // two digits, a space and a newline
		pax += fmt.Sprintf("%02d %s\n", n, r)
	}
	ar := slices.Concat(block('x', "pax", pax), block('0', "GNUSparseFile.0/x", "0\n"+strings.Repeat("\x00", 510)), make([]byte, 1024))
	if h, err := tar.NewReader(bytes.NewReader(ar)).Next(); err != nil || h.Size != 1<<30 || h.Name != name {
		t.Fatalf("the archive is not what it should be: %+v, %v", h, err)
	}
	if _, err := open(t).Load(t.Context(), bytes.NewReader(ar), LoadOptions{}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "holes") {
		t.Error(err)
	}
}
