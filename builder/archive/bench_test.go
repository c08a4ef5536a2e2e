package archive

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// hundred is an archive of 5,000 files, 100 MB together, that pack to about half.
// SMOLVMM_BENCH_TAR names another one to measure.
func hundred(b *testing.B) []byte {
	b.Helper()
	if path := os.Getenv("SMOLVMM_BENCH_TAR"); path != "" {
		t, err := os.ReadFile(path)
		must(b, err)
		return t
	}
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 1<<20)
	for i := range words {
		words[i] = "etaoin shrdlu\n01"[r.UintN(16)]
	}
	var all []entry
	for i := range 5000 {
		size := 1000 + r.IntN(38_000)
		at := r.IntN(len(words) - size)
		all = append(all, with(tar.Header{Name: fmt.Sprintf("usr/d%d/f%d", i%50, i), Mode: 0o644}, string(words[at:at+size])))
	}
	return archivetest.Tar(all...)
}

func BenchmarkRead(b *testing.B) {
	t := hundred(b)
	packs := map[string]func([]byte) []byte{"tar": func(b []byte) []byte { return b }, "gz": archivetest.Gzip, "zst": archivetest.Zstd}
	if os.Getenv("SMOLVMM_BENCH_TAR") != "" {
		packs = map[string]func([]byte) []byte{"file": func(b []byte) []byte { return b }}
	}
	for name, pack := range packs {
		packed := pack(t)
		for where, blobs := range map[string]func() *blob.Store{"memory": func() *blob.Store { return nil }, "blobs": func() *blob.Store { return store(b) }} {
			b.Run(name+"/"+where, func(b *testing.B) {
				b.SetBytes(int64(len(t)))
				for range b.N {
					if _, err := read(packed, Options{Blobs: blobs()}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkTree is what the second use of such a set costs.
func BenchmarkTree(b *testing.B) {
	s := store(b)
	tr, err := read(hundred(b), Options{Blobs: s})
	must(b, err)
	var enc bytes.Buffer
	must(b, tr.Encode(&enc))
	b.Run("decode", func(b *testing.B) {
		for range b.N {
			if _, err := tree.Decode(bytes.NewReader(enc.Bytes()), s.Content); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("digest", func(b *testing.B) {
		for range b.N {
			if _, err := tr.Digest(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("clone", func(b *testing.B) {
		for range b.N {
			tr.Clone()
		}
	})
}

func BenchmarkFromDir(b *testing.B) {
	dir := b.TempDir()
	for i := range 5000 {
		d := filepath.Join(dir, fmt.Sprint(i%50))
		must(b, os.MkdirAll(d, 0o755))
		must(b, os.WriteFile(filepath.Join(d, fmt.Sprint(i)), make([]byte, 20_000), 0o644))
	}
	b.ResetTimer()
	for range b.N {
		if _, err := FromDir(b.Context(), dir, DirOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
