package testimg

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// newestKernel is a NetBSD kernel in the user's cache, where smolvmm keeps them.
func newestKernel(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no cache directory: %v", err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "smolvmm", "kernels", "*", "netbsd-MICROVM"))
	if err != nil || len(found) == 0 {
		t.Skip("NOT RUN: no NetBSD kernel in the cache (smolvmm kernel fetch)")
	}
	slices.Sort(found)
	return found[len(found)-1]
}

// boot runs a NetBSD kernel in QEMU's emulation with the image as its disk, and
// gives the console and the byte that the guest wrote to its exit port.
func boot(t *testing.T, img string, cpus int, items map[string]string) (console string, status int) {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("NOT RUN: no qemu-system-x86_64")
	}
	args := []string{
		"-M", "microvm,x-option-roms=off,rtc=on,acpi=off,pic=off,auto-kernel-cmdline=on,accel=tcg", "-m", "256",
		"-smp", strconv.Itoa(cpus), "-kernel", newestKernel(t), "-append", "root=ld0a console=com -z",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-nodefaults",
		"-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=hd0",
		"-drive", "format=raw,id=hd0,if=none,cache=unsafe,file=" + img,
		// Its exit status is twice the byte, plus one.
		"-device", "isa-debug-exit,iobase=0x501,iosize=1",
	}
	dir := t.TempDir()
	for name, value := range items {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-fw_cfg", "name=opt/smolvmm/"+name+",file="+file)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var ee *exec.ExitError
	switch {
	case err == nil || !errors.As(err, &ee) || ee.ExitCode() < 1 || ee.ExitCode()%2 == 0:
		t.Fatalf("the guest did not use its exit port: %v\n%s", err, out.String())
	}
	return out.String(), ee.ExitCode() / 2
}

func TestNetBSD(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD in emulation")
	}
	newestKernel(t)
	spec, err := Default(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		cpus   int
		items  map[string]string
		status int
		says   []string
	}{
		{"image's command", 1, nil, 0, []string{"smolinit: running /bin/guestcheck", "cpus: 1,", "4096 KiB written, synced and read back in /", "guestcheck: ok, status 0"}},
		{"host's command", 4, map[string]string{
			"init.json": `{"argv": ["guestcheck", "-status", "42", "-cpus", "4", "-env", "GREETING=hello world",
				"-file", "/run/secrets/token=s3cret", "-size", "1", "-dir", "/tmp"], "uid": 1000, "gid": 1000, "cwd": "/tmp"}`,
			"env/GREETING": "hello world", "secret/token": "s3cret", "file/app.conf": "x",
		}, 42, []string{"/run/secrets/token, mode -r--------", "in /tmp", "guestcheck: ok, status 42"}},
		{"secret in the environment", 1, map[string]string{
			"init.json": `{"argv": ["guestcheck", "-env", "TOKEN=s3cret", "-file", "/etc/app.conf=conf", "-size", "1"],
				"secrets": {"token": {"env": "TOKEN"}}, "files": {"app.conf": {"path": "/etc/app.conf"}}}`,
			"secret/token": "s3cret", "file/app.conf": "conf",
		}, 0, []string{"environment: TOKEN=s3cret", "/etc/app.conf, mode -rw-r--r--"}},
		{"no such command", 1, map[string]string{"init.json": `{"argv": ["nosuch"]}`}, 127, []string{"smolinit: find in PATH nosuch"}},
		{"bad configuration", 1, map[string]string{"init.json": `{"argv": 1}`}, 125, []string{"smolinit: configuration: opt/smolvmm/init.json: "}},
		{"secret on a disk", 1, map[string]string{
			"init.json": `{"secrets": {"key": {"path": "/etc/key"}}}`, "secret/key": "x"}, 125, []string{"/etc/key is on ext2fs, a disk"}},
		{"nothing to run", 1, map[string]string{"init.json": `{"argv": []}`}, 0, []string{"no command is given", "/bin   guestcheck"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "root.img")
			if err := Build(t.Context(), img, spec); err != nil {
				t.Fatal(err)
			}
			console, status := boot(t, img, c.cpus, c.items)
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			for _, s := range c.says {
				if !strings.Contains(console, s) {
					t.Errorf("the console lacks %q", s)
				}
			}
			if t.Failed() {
				t.Log(console)
			}
			fsck(t, img)
		})
	}
}
