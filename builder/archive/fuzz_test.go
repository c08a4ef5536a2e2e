package archive

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/archive/archivetest"
)

func FuzzRead(f *testing.F) {
	plain := archivetest.Tar(file("a/b", "content"), link("c", "a/b"), symlink("s", "/a"), with(tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1}, ""),
		with(tar.Header{Name: "p", PAXRecords: map[string]string{fflags: "uchg"}, ModTime: time.Unix(1, 5), Format: tar.FormatPAX}, ""))
	for _, b := range [][]byte{plain, archivetest.Gzip(plain), archivetest.XZ(plain), archivetest.Zstd(plain), oldGNUSparse(100_000), paxSparse(100_000),
		archivetest.Tar(file("../x", "y")), archivetest.Tar(file("s/", ""), file("s/t", "u"))} {
		f.Add(b)
	}
	if b, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(realXZ, "\n", "")); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		limits := Limits{Entries: 1000, Bytes: 4 << 20, Memory: 2 << 20, Names: 1 << 20}
		tr, err := read(b, Options{Name: "fuzz.tar", Limits: limits, Owners: ByName})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("%q", err)
			}
			return
		}
		// What was taken is a tree that can be encoded, written and read again.
		want, err := tr.Digest()
		must(t, err)
		s, err := tr.Stats()
		must(t, err)
		if s.Bytes > limits.Memory || s.Names > limits.Entries*limits.Entries {
			t.Fatalf("%+v is beyond the limits", s)
		}
		var out bytes.Buffer
		if err := Write(t.Context(), &out, tr, "out.tar"); err != nil {
			return // names that tar cannot say
		}
		back, err := read(out.Bytes(), Options{Limits: Limits{Path: 4096, Depth: 4096}})
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		if got, err := back.Digest(); err != nil || got != want {
			t.Fatalf("another tree after a round: %v", err)
		}
	})
}
