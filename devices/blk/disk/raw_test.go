package disk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/blk"
)

// image makes a file of n random bytes.
func image(t testing.TB, n int) (path string, data []byte) {
	t.Helper()
	data = randomBytes(n)
	path = filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func randomBytes(n int) []byte {
	c := rand.NewChaCha8([32]byte{1, 2, 3})
	p := make([]byte, n)
	c.Read(p)
	return p
}

func open(t testing.TB, o Options) blk.Backend {
	t.Helper()
	b, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// bytesOf reads a whole disk.
func bytesOf(t testing.TB, b blk.Backend) []byte {
	t.Helper()
	p := make([]byte, b.Size())
	if err := b.ReadV([][]byte{p}, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	good, _ := image(t, 4096)
	file := func(name string, n int64, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, make([]byte, n), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := func(path string, flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	for name, c := range map[string]struct {
		o    Options
		want string // besides the file's name
	}{
		"missing":               {Options{Path: filepath.Join(dir, "none")}, "no such file"},
		"nothing named":         {Options{}, "no image"},
		"empty":                 {Options{Path: file("empty", 0, 0o600)}, "0 bytes"},
		"short":                 {Options{Path: file("short", 511, 0o600)}, "511 bytes"},
		"odd size":              {Options{Path: file("odd", 513, 0o600)}, "multiple of 512"},
		"directory":             {Options{Path: dir}, "is a directory"},
		"directory, ro":         {Options{Path: dir, ReadOnly: true}, "is a directory"},
		"fifo":                  {Options{Path: fifo}, "neither a regular file nor a block device"},
		"character device":      {Options{Path: "/dev/null"}, "neither a regular file nor a block device"},
		"ro and overlay":        {Options{Path: good, ReadOnly: true, Overlay: true}, "exclude"},
		"overlay file alone":    {Options{Path: good, OverlayPath: "x"}, "without overlay"},
		"file not writable":     {Options{File: opened(good, os.O_RDONLY)}, "not open for reading and writing"},
		"file write-only":       {Options{File: opened(good, os.O_WRONLY), ReadOnly: true}, "not open for reading"},
		"file appends":          {Options{File: opened(good, os.O_RDWR|os.O_APPEND)}, "O_APPEND"},
		"file direct":           {Options{File: opened(good, os.O_RDWR|unix.O_DIRECT)}, "O_DIRECT"},
		"file by path only":     {Options{File: opened(good, unix.O_PATH), ReadOnly: true}, "O_PATH"},
		"serial too long":       {Options{Path: good, Serial: strings.Repeat("x", 21)}, "at most 20"},
		"serial unprintable":    {Options{Path: good, Serial: "a\nb"}, "ASCII"},
		"overlay is the image":  {Options{Path: good, Overlay: true, OverlayPath: good}, "image itself"},
		"overlay not one":       {Options{Path: good, Overlay: true, OverlayPath: file("text", 100, 0o600)}, "not an overlay"},
		"overlay is directory":  {Options{Path: good, Overlay: true, OverlayPath: dir}, "is a directory"},
		"overlay in no dir":     {Options{Path: good, Overlay: true, OverlayPath: filepath.Join(dir, "no", "x")}, "directory is there"},
		"overlay dir not there": {Options{Path: good, Overlay: true, OverlayDir: filepath.Join(dir, "no")}, "directory is there"},
		"overlay named twice":   {Options{Path: good, Overlay: true, OverlayPath: "x", OverlayFile: os.Stdin}, "both"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Open(c.o)
			if err == nil {
				b.Close()
				t.Fatal("opened")
			}
			msg := err.Error()
			if !strings.Contains(msg, c.want) || strings.ContainsAny(msg, "\n") {
				t.Errorf("error %q: want one line with %q", msg, c.want)
			}
			if p := c.o.Path; p != "" && !strings.Contains(msg, p) {
				t.Errorf("error %q does not name %s", msg, p)
			}
			if c.o.File != nil {
				if _, err := c.o.File.Stat(); err != nil {
					t.Errorf("Open closed a file that it did not take over: %v", err)
				}
			}
		})
	}
	// Nothing of the above may have left a lock behind.
	open(t, Options{Path: good})
}

func TestOpenWithoutPermission(t *testing.T) {
	path, _ := image(t, 4096)
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		// Root may write everything but an immutable file, and a directory
		// mounted read-only; the error text is what is left to test.
		msg := diskError(path, unix.EACCES).Error()
		if !strings.Contains(msg, path) || !strings.Contains(msg, "permission denied") || !strings.Contains(msg, "ro or overlay") {
			t.Errorf("error %q", msg)
		}
		return
	}
	if _, err := Open(Options{Path: path}); !errors.Is(err, unix.EACCES) {
		t.Errorf("got %v, want EACCES", err)
	}
	open(t, Options{Path: path, ReadOnly: true})
}

func TestSerial(t *testing.T) {
	for path, want := range map[string]string{
		"/a/root.img": "root.img", "/a/a name that is far too long.img": "a_name_that_is_far_t", "/a/\xff\x01é": "____",
	} {
		if s, err := (Options{Path: path}).serial(); err != nil || s != want {
			t.Errorf("%q: %q, %v; want %q", path, s, err, want)
		}
	}
}

// TestRawTransfers compares random vectored transfers with a byte array.
func TestRawTransfers(t *testing.T) {
	const size = 1 << 20
	path, model := image(t, size)
	d := open(t, Options{Path: path})
	if d.Size() != size || d.BlockSize() != 512 || d.ReadOnly() || d.Serial() != "disk.raw" {
		t.Fatalf("size %d, block %d, ro %v, serial %q", d.Size(), d.BlockSize(), d.ReadOnly(), d.Serial())
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		off := rng.Int64N(size/512) * 512
		n := (1 + rng.Int64N(min(size-off, 200<<10)/512)) * 512
		p := make([]byte, n)
		bufs := cutUp(rng, p)
		switch rng.IntN(4) {
		case 0, 1:
			fill(rng, p)
			if err := d.WriteV(bufs, off); err != nil {
				t.Fatal(i, err)
			}
			copy(model[off:], p)
		case 2:
			if err := d.ReadV(bufs, off); err != nil {
				t.Fatal(i, err)
			}
			if !bytes.Equal(p, model[off:off+n]) {
				t.Fatalf("step %d: %d bytes at %d differ in %d runs", i, n, off, len(bufs))
			}
		case 3:
			if err := d.WriteZeroes(off, n, rng.IntN(2) == 0); err != nil {
				t.Fatal(i, err)
			}
			clear(model[off : off+n])
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, model) {
		t.Fatalf("the file is not what was written (%v)", err)
	}
}

// cutUp splits p into runs of any length: sometimes far more than one system
// call takes.
func cutUp(rng *rand.Rand, p []byte) [][]byte {
	most := 1 + rng.IntN(70000)
	if rng.IntN(4) == 0 {
		most = 40
	}
	var bufs [][]byte
	for len(p) > 0 {
		k := min(len(p), 1+rng.IntN(most))
		bufs = append(bufs, p[:k:k])
		p = p[k:]
	}
	return bufs
}

func fill(rng *rand.Rand, p []byte) {
	rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())}).Read(p)
}

func TestRawBounds(t *testing.T) {
	path, want := image(t, 8192)
	d := open(t, Options{Path: path})
	p := [][]byte{make([]byte, 512)}
	for _, off := range []int64{-512, 8192, 8192 - 256, 1 << 62} {
		if d.ReadV(p, off) == nil || d.WriteV(p, off) == nil || d.Discard(off, 512) == nil || d.WriteZeroes(off, 512, true) == nil {
			t.Errorf("512 bytes at %d were taken", off)
		}
	}
	if d.Discard(0, -1) == nil || d.WriteZeroes(512, 1<<62, false) == nil {
		t.Error("absurd lengths were taken")
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
		t.Error("the file was changed, or grew")
	}
}

func TestReadOnly(t *testing.T) {
	path, want := image(t, 8192)
	d := open(t, Options{Path: path, ReadOnly: true})
	if !d.ReadOnly() {
		t.Error("not read-only")
	}
	if d.WriteV([][]byte{make([]byte, 512)}, 0) == nil || d.Discard(0, 4096) == nil || d.WriteZeroes(0, 4096, true) == nil {
		t.Error("a read-only disk was written")
	}
	if err := d.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	if got := bytesOf(t, d); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
}

func TestTruncatedUnderUs(t *testing.T) {
	for _, overlay := range []bool{false, true} {
		path, want := image(t, 64<<10)
		d := open(t, Options{Path: path, Overlay: overlay})
		if err := os.Truncate(path, 8192+100); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 8192)
		if err := d.ReadV([][]byte{p}, 0); err != nil || !bytes.Equal(p, want[:8192]) {
			t.Errorf("overlay %v: what is left cannot be read: %v", overlay, err)
		}
		if err := d.ReadV([][]byte{p}, 8192); !errors.Is(err, errTruncated) {
			t.Errorf("overlay %v: read behind the end: %v", overlay, err)
		}
		err := d.Flush()
		if !overlay && !errors.Is(err, errTruncated) {
			t.Errorf("flush of a truncated disk: %v", err)
		}
		// A write of less than a block needs the rest from the base.
		if err := d.WriteV([][]byte{p[:512]}, 32<<10); overlay && !errors.Is(err, errTruncated) {
			t.Errorf("overlay: a block was completed from nothing: %v", err)
		}
	}
}

func TestDiscardGivesSpaceBack(t *testing.T) {
	path, _ := image(t, 1<<20)
	d := open(t, Options{Path: path})
	if err := d.Flush(); err != nil { // so that delayed allocation is over
		t.Fatal(err)
	}
	before := allocated(t, path)
	if err := d.Discard(0, 512<<10); err != nil {
		t.Fatal(err)
	}
	if d.(*Raw).noPunch {
		t.Skip("SKIPPED: the file system of the test's directory has no holes")
	}
	if after := allocated(t, path); before-after < 512<<10 {
		t.Errorf("%d bytes allocated before, %d after", before, after)
	}
	if got := bytesOf(t, d)[:512<<10]; !bytes.Equal(got, make([]byte, 512<<10)) {
		t.Error("discarded bytes of a file read as something else than zero")
	}
	// Zeroes that may not unmap keep their space.
	before = allocated(t, path)
	if err := d.WriteZeroes(512<<10, 256<<10, false); err != nil {
		t.Fatal(err)
	}
	if after := allocated(t, path); after < before {
		t.Errorf("write zeroes without unmap: %d bytes allocated before, %d after", before, after)
	}
	if err := d.WriteZeroes(512<<10, 256<<10, true); err != nil {
		t.Fatal(err)
	}
	if after := allocated(t, path); before-after < 256<<10 {
		t.Errorf("write zeroes with unmap: %d bytes allocated before, %d after", before, after)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 1<<20 {
		t.Errorf("size %d, %v", st.Size(), err)
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestZeroesWithoutFallocate: the plain way gives the same bytes.
func TestZeroesWithoutFallocate(t *testing.T) {
	path, want := image(t, 300<<10)
	d := open(t, Options{Path: path})
	d.(*Raw).noPunch, d.(*Raw).noZero = true, true
	if err := d.WriteZeroes(512, 200<<10, true); err != nil {
		t.Fatal(err)
	}
	clear(want[512 : 512+200<<10])
	if err := d.Discard(0, 300<<10); err != nil {
		t.Fatal(err)
	}
	if got := bytesOf(t, d); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
}

// TestFlushFailsForGood: an fdatasync that failed once is not believed again.
func TestFlushFailsForGood(t *testing.T) {
	path, _ := image(t, 4096)
	d := open(t, Options{Path: path}).(*Raw)
	fd := d.f.fd
	d.f.fd = -1 // fdatasync says EBADF
	if d.Flush() == nil {
		t.Fatal("flushed nothing")
	}
	d.f.fd = fd
	if err := d.Flush(); !errors.Is(err, unix.EBADF) {
		t.Errorf("flush behind a failed one: %v", err)
	}
}

func TestTransferRunsOut(t *testing.T) {
	path, _ := image(t, 4096)
	d := open(t, Options{Path: path}).(*Raw)
	if err := d.f.readv([][]byte{make([]byte, 512)}, 0, 1024, 0); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("got %v", err)
	}
	if v := d.f.vec.iov[:cap(d.f.vec.iov)]; v[0].Base != nil {
		t.Error("a buffer is kept between transfers")
	}
}

func TestTransfersAllocateNothing(t *testing.T) {
	path, _ := image(t, 1<<20)
	for _, o := range []Options{{Path: path, Overlay: true}, {Path: path, ReadOnly: true}} {
		d := open(t, o)
		var bufs [][]byte
		for range 256 {
			bufs = append(bufs, make([]byte, 4096))
		}
		if n := testing.AllocsPerRun(10, func() {
			if err := d.ReadV(bufs, 0); err != nil {
				t.Fatal(err)
			}
			if d.ReadOnly() {
				return
			}
			if err := d.WriteV(bufs[:128], 512); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("overlay %v: %v allocations a request", o.Overlay, n)
		}
	}
}
