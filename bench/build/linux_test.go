package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd"
	"github.com/smolvmm/smolvmm/builder/image/ffs"
	"github.com/smolvmm/smolvmm/builder/tree"
	"golang.org/x/sys/unix"
)

const linuxVar = "SMOLVMM_BUILD_LINUX"

// TestLinux: Linux's own ufs driver reads every name and byte of our images. It
// runs in the lab, with Debian's generic kernel. TestLinuxInLab is what it runs.
func TestLinux(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots Linux in emulation")
	}
	dir := t.TempDir()
	lab, err := netbsd.Lab(t.Context(), dir)
	if errors.Is(err, netbsd.ErrMissing) {
		t.Skipf("NOT RUN: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), lab, "doctor").CombinedOutput(); err != nil || !strings.Contains(string(out), "generic kernel") || strings.Contains(string(out), "no generic") {
		t.Skipf("NOT RUN: no generic kernel in the lab (go run ./bench/lab setup -kernel generic): %s", out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tr := allKinds(t)
	if err := tr.Put("manifest.json", tree.NewFile(0o644, tree.Bytes(manifest(t, tr)))); err != nil {
		t.Fatal(err)
	}
	argv := []string{"-kernel", "generic", "-modules", "ufs", "-timeout", "4m", "-env", linuxVar}
	for i, o := range []ffs.Options{{Label: "first"}, {Block: 4096, Fragment: 512, Size: 100 << 20}, {Block: 32768, Fragment: 4096, Minimize: true}} {
		name := filepath.Join(dir, fmt.Sprintf("disk-%d.img", i))
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := ffs.Write(t.Context(), f, tr, o)
		if err = errors.Join(err, f.Truncate(info.Size), f.Close()); err != nil {
			t.Fatal(err)
		}
		argv = append(argv, "-drive", name)
	}
	argv = append(argv, self, "-test.run=^TestLinuxInLab$", "-test.v", "-test.timeout=3m")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, lab, argv...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), linuxVar+"=vda,vdb,vdc")
	said, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(said), "are as they should be") != 3 {
		t.Errorf("%v\n%s", err, said)
	}
}

// TestLinuxInLab mounts the disks that it is told and holds them to their manifests.
func TestLinuxInLab(t *testing.T) {
	disks := os.Getenv(linuxVar)
	if disks == "" {
		t.Skip("this is what TestLinux runs in the lab")
	}
	for disk := range strings.SplitSeq(disks, ",") {
		at := filepath.Join(t.TempDir(), disk)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("/dev/"+disk, at, "ufs", unix.MS_RDONLY, "ufstype=ufs2"); err != nil {
			t.Fatalf("mount %s: %v", disk, err)
		}
		b, err := os.ReadFile(filepath.Join(at, "manifest.json"))
		if err != nil {
			t.Fatal(err)
		}
		var list []entry
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{"/manifest.json": true}
		for _, e := range list {
			names[e.Path] = true
			if err := e.onLinux(at); err != nil {
				t.Errorf("%s: %s: %v", disk, e.Path, err)
			}
		}
		err = filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
			if name := strings.TrimPrefix(path, at); err == nil && name != "" && !names[name] {
				return fmt.Errorf("%s is in no manifest", name)
			}
			return err
		})
		if err = errors.Join(err, unix.Unmount(at, 0)); err != nil {
			t.Errorf("%s: %v", disk, err)
		}
		if !t.Failed() {
			t.Logf("%s: %d names are as they should be", disk, len(list))
		}
	}
}

// onLinux compares what Linux tells: it knows neither flags nor NetBSD's device
// numbers.
func (e entry) onLinux(root string) error {
	path := root + e.Path
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err
	}
	got := entry{Path: e.Path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Links: uint32(st.Nlink), Mtime: st.Mtim.Nano(), Flags: e.Flags, Dev: e.Dev, Same: e.Same}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		got.Size = st.Size
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		got.Sum = hex.EncodeToString(h.Sum(nil))
	case syscall.S_IFLNK:
		got.Size = st.Size
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		got.Target = target
	}
	if got != e {
		return fmt.Errorf("it is %+v, want %+v", got, e)
	}
	return nil
}
