package ffs

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/image/ffs/ffstest"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// TestFsck: NetBSD's fsck_ffs, where the host has it, finds nothing in our images,
// and finds a bit that is wrong.
func TestFsck(t *testing.T) {
	fsck := tool(t, "fsck_ffs")
	check := func(img string) (string, bool) {
		// -n changes nothing, -f looks though it is clean, -F takes a file.
		out, err := exec.CommandContext(t.Context(), fsck, "-F", "-f", "-n", img).CombinedOutput()
		said := strings.TrimSpace(string(out))
		good := err == nil
		for line := range strings.Lines(said) {
			good = good && (strings.HasPrefix(line, "** ") || strings.Contains(line, " files, "))
		}
		return said, good
	}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := Options{Block: 4096 << (seed % 4), Free: r.Int64N(1 << 30), Minimize: true}
		o.Fragment = max(512, o.Block>>r.IntN(4))
		if said, good := check(image(t, random(r, o.Block), o)); !good {
			t.Errorf("seed %d, %+v:\n%s", seed, o, said)
		}
	}
	img := image(t, tree.New(), Options{})
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ffstest.Open(f, true)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(d.Super.Cblkno)*int64(d.Super.Fsize) + 168 // the bitmap of inodes
	if _, err = f.WriteAt([]byte{0x0f}, at); errors.Join(err, f.Close()) != nil {
		t.Fatal(err)
	}
	if said, good := check(img); good {
		t.Errorf("a wrong bitmap is taken:\n%s", said)
	}
}
