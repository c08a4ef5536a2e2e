package disk

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onSmallDisk runs open on a thread that alone sees a tmpfs of 1 MiB mounted;
// what it opens can be used anywhere. The mount goes with the thread and files.
func onSmallDisk(t *testing.T, open func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	errs := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")
		}
		if err == nil {
			open(dir)
		}
		errs <- err
	}()
	if err := <-errs; err != nil {
		t.Skipf("SKIPPED: needs root, to mount a tmpfs: %v", err)
	}
}

// TestFullDisk: a host without room is an error for the request that needed it
// and for no other.
func TestFullDisk(t *testing.T) {
	const size = 8 << 20
	for _, overlay := range []bool{false, true} {
		var d interface {
			WriteV([][]byte, int64) error
			ReadV([][]byte, int64) error
			WriteZeroes(int64, int64, bool) error
			Discard(int64, int64) error
			Flush() error
			Close() error
		}
		var openErr error
		onSmallDisk(t, func(dir string) {
			path := filepath.Join(dir, "disk")
			o := Options{Path: path}
			if overlay {
				o = Options{Path: filepath.Join(t.TempDir(), "base"), Overlay: true, OverlayPath: path}
				path = o.Path
			}
			f, err := os.Create(path)
			if err == nil {
				err = f.Truncate(size)
				f.Close()
			}
			if err == nil {
				d, err = Open(o)
			}
			openErr = err
		})
		if openErr != nil {
			t.Fatal(openErr)
		}
		defer d.Close()
		chunk := randomBytes(96 << 10)
		written := int64(0)
		var err error
		for written < size {
			if err = d.WriteV([][]byte{chunk[:100], chunk[100:]}, written); err != nil {
				break
			}
			written += int64(len(chunk))
		}
		if !errors.Is(err, unix.ENOSPC) || written == 0 {
			t.Fatalf("overlay %v: %v after %d bytes, want a full disk", overlay, err, written)
		}
		if err := d.WriteZeroes(4<<20, 1<<20, false); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("overlay %v: zeroes with space kept: %v", overlay, err)
		}
		p := make([]byte, len(chunk))
		for off := int64(0); off < written; off += int64(len(chunk)) {
			if err := d.ReadV([][]byte{p}, off); err != nil || !bytes.Equal(p, chunk) {
				t.Fatalf("overlay %v: what was written before is gone: %v", overlay, err)
			}
		}
		if err := d.ReadV([][]byte{p}, size-int64(len(p))); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("overlay %v: the unwritten end: %v", overlay, err)
		}
		if err := d.Flush(); err != nil {
			t.Errorf("overlay %v: flush: %v", overlay, err)
		}
		// Room again: work goes on.
		if err := d.Discard(0, written); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteV([][]byte{chunk}, 5<<20); err != nil {
			t.Errorf("overlay %v: with room again: %v", overlay, err)
		}
		if err := d.ReadV([][]byte{p}, 5<<20); err != nil || !bytes.Equal(p, chunk) {
			t.Errorf("overlay %v: with room again: read: %v", overlay, err)
		}
	}
}

// TestNoRoomForOverlayHeader: a full file system refuses a new overlay, and the
// file that is left can be made an overlay later.
func TestNoRoomForOverlayHeader(t *testing.T) {
	base, _ := image(t, 64<<10)
	onSmallDisk(t, func(dir string) {
		hog := filepath.Join(dir, "hog")
		for n := 1 << 20; n > 0; n /= 2 {
			f, err := os.OpenFile(hog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				t.Error(err)
				return
			}
			for err == nil {
				_, err = f.Write(make([]byte, n))
			}
			f.Close()
		}
		o := Options{Path: base, Overlay: true, OverlayPath: filepath.Join(dir, "changes")}
		if _, err := Open(o); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room there") {
			t.Errorf("on a full file system: %v", err)
		}
		if err := os.Remove(hog); err != nil {
			t.Error(err)
		}
		d, err := Open(o)
		if err != nil {
			t.Errorf("with room again: %v", err)
			return
		}
		d.Close()
	})
}

// TestFileSizeLimit: RLIMIT_FSIZE gives an error, and its signal does no harm.
func TestFileSizeLimit(t *testing.T) {
	path, _ := image(t, 2<<20)
	d := open(t, Options{Path: path})
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 1 << 20, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &old)
	p := make([]byte, 8192)
	// Half of it is below the limit: a short write, then the error.
	if err := d.WriteV([][]byte{p}, 1<<20-4096); !errors.Is(err, unix.EFBIG) {
		t.Errorf("write across the limit: %v", err)
	}
	if err := d.WriteV([][]byte{p}, 0); err != nil {
		t.Errorf("write below the limit: %v", err)
	}
	if _, err := Open(Options{Path: path + "2", Overlay: true, File: dup(t, d.(*Raw).f.f)}); !errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "ulimit -f") {
		t.Errorf("an overlay beyond the limit: %v", err)
	}
}

func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { g.Close() })
	return g
}

// TestBlockDevice works on a loop device with blocks of 4096 bytes.
func TestBlockDevice(t *testing.T) {
	path, want := image(t, 1<<20)
	losetup, err := exec.LookPath("losetup")
	if err != nil {
		t.Skipf("SKIPPED: needs losetup: %v", err)
	}
	out, err := exec.Command(losetup, "--find", "--show", "--sector-size", "4096", path).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: needs a loop device: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	d := open(t, Options{Path: dev})
	if d.Size() != 1<<20 || d.BlockSize() != 4096 {
		t.Fatalf("size %d, block size %d", d.Size(), d.BlockSize())
	}
	if !bytes.Equal(bytesOf(t, d), want) {
		t.Fatal("content differs")
	}
	if _, err := Open(Options{Path: dev, ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "this very process") {
		t.Errorf("a block device twice: %v", err)
	}
	check := func(what string) {
		t.Helper()
		if err := d.Flush(); err != nil {
			t.Fatalf("%s: flush: %v", what, err)
		}
		if !bytes.Equal(bytesOf(t, d), want) {
			t.Fatalf("%s: content differs", what)
		}
	}
	p := randomBytes(1536)
	if err := d.WriteV([][]byte{p[:512], p[512:]}, 512); err != nil {
		t.Fatal(err)
	}
	copy(want[512:], p)
	check("write of less than a block")
	for _, unmap := range []bool{false, true} {
		for _, r := range [][2]int64{{64 << 10, 64 << 10}, {200<<10 + 512, 9 << 10}} {
			if err := d.WriteZeroes(r[0], r[1], unmap); err != nil {
				t.Fatal(err)
			}
			clear(want[r[0] : r[0]+r[1]])
			check("zeroes")
		}
	}
	// Blocks covered in part keep their data.
	if err := d.Discard(512<<10-512, 8<<10+1024); err != nil {
		t.Fatal(err)
	}
	if d.(*Raw).noPunch {
		t.Log("the loop device cannot discard")
	} else {
		clear(want[512<<10 : 520<<10])
	}
	check("discard")
	if err := d.WriteV([][]byte{p[:512]}, 1<<20); err == nil {
		t.Error("written behind the end")
	}
}
