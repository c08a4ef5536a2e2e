package kernels

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// packages are what the lab needs of Debian: the emulator with its firmware, and depmod.
var packages = []string{"qemu-system-x86", "seabios", "ipxe-qemu", "kmod"}

// Setup installs what is missing and says on w what it did. It does nothing where all is there.
func Setup(ctx context.Context, w io.Writer, cache, flavour string) error {
	s := &setup{ctx: ctx, w: w}
	if err := s.tools(); err != nil {
		return err
	}
	return s.kernel(cache, flavour)
}

type setup struct {
	ctx     context.Context
	w       io.Writer
	updated bool
}

func (s *setup) say(format string, a ...any) { fmt.Fprintf(s.w, "lab: "+format+"\n", a...) }

// run runs a program quietly; its error carries the last lines of what it printed.
func (s *setup) run(dir, prog string, args ...string) (string, error) {
	c := exec.CommandContext(s.ctx, prog, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := c.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("%s %s: %w: %s", prog, strings.Join(args, " "), err,
			strings.Join(lines[max(0, len(lines)-3):], " | "))
	}
	return string(out), nil
}

// update refreshes apt's lists, once.
func (s *setup) update() error {
	if s.updated {
		return nil
	}
	s.say("refreshing the package lists")
	s.updated = true
	_, err := s.run("", "apt-get", "update")
	return err
}

func (s *setup) tools() error {
	_, version, err := CheckQEMU()
	if err == nil {
		if _, err := depmod(); err == nil {
			s.say("QEMU %s is there", version)
			return nil
		}
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("setup installs with apt-get, which this machine has not: install %s %d or newer and kmod by hand", QEMU, MinQEMU)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("installing %s needs root: run the setup once as root, or install it by hand", strings.Join(packages, ", "))
	}
	if err := s.update(); err != nil {
		return err
	}
	args := []string{"install", "-y", "--no-install-recommends"}
	out, err := s.run("", "apt-cache", "policy", packages[0])
	if err != nil {
		return err
	}
	if major := candidateMajor(out); major < MinQEMU {
		codename, err := s.backports()
		if err != nil {
			return err
		}
		args = append(args, "-t", codename+"-backports")
	}
	s.say("installing %s", strings.Join(packages, ", "))
	if _, err := s.run("", "apt-get", append(args, packages...)...); err != nil {
		return err
	}
	if _, version, err = CheckQEMU(); err != nil {
		return err
	}
	s.say("installed QEMU %s", version)
	return nil
}

// candidateMajor reads the major release of the candidate in apt-cache policy's output; 0 where there is none.
func candidateMajor(policy string) int {
	for line := range strings.SplitSeq(policy, "\n") {
		v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: ")
		if !ok {
			continue
		}
		if _, after, ok := strings.Cut(v, ":"); ok {
			v = after // the epoch
		}
		var n int
		if _, err := fmt.Sscanf(v, "%d.", &n); err == nil {
			return n
		}
	}
	return 0
}

// backports makes the release's backports available and returns the release's code name.
func (s *setup) backports() (string, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	codename := ""
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VERSION_CODENAME="); ok {
			codename = strings.Trim(v, `"`)
		}
	}
	if codename == "" {
		return "", fmt.Errorf("/etc/os-release names no VERSION_CODENAME: install QEMU %d or newer by hand", MinQEMU)
	}
	files := map[string]string{}
	names, err := filepath.Glob("/etc/apt/sources.list.d/*")
	if err != nil {
		return "", err
	}
	for _, n := range append(names, "/etc/apt/sources.list") {
		b, err := os.ReadFile(n)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		files[n] = string(b)
	}
	text, present, err := Backports(files, codename)
	if err != nil || present {
		return codename, err
	}
	const name = "/etc/apt/sources.list.d/smolvmm-lab-backports.sources"
	s.say("adding %s-backports in %s", codename, name)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return "", err
	}
	s.updated = false
	return codename, s.update()
}

// depmod finds the program that writes modules.dep; it is often outside a user's PATH.
func depmod() (string, error) {
	for _, n := range []string{"depmod", "/usr/sbin/depmod", "/sbin/depmod"} {
		if p, err := exec.LookPath(n); err == nil {
			return p, nil
		}
	}
	return "", errors.New("depmod (package kmod) is not installed")
}

func (s *setup) kernel(cache, flavour string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	// Two at a time would take away each other's folder.
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	k, err := Find(cache, flavour)
	if err == nil {
		s.say("the %s kernel %s is in %s", flavour, k.Release, k.Dir)
		return nil
	}
	if !errors.Is(err, ErrSetup) {
		return err
	}
	tmp, err := os.MkdirTemp(cache, ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	pkg, err := s.kernelPackage(Flavours[flavour])
	if err != nil {
		return err
	}
	s.say("downloading %s", pkg)
	if _, err := s.run(tmp, "apt-get", "download", pkg); err != nil {
		// A list that is out of date names packages that are gone.
		if s.updated || os.Geteuid() != 0 {
			return err
		}
		if err := s.update(); err != nil {
			return err
		}
		if pkg, err = s.kernelPackage(Flavours[flavour]); err != nil {
			return err
		}
		if _, err := s.run(tmp, "apt-get", "download", pkg); err != nil {
			return err
		}
	}
	k, err = s.unpack(tmp)
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, flavour)
	// What is there is not whole, or Find would have had it.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "x"), dir); err != nil {
		return err
	}
	s.say("unpacked the %s kernel %s (%s) into %s", flavour, k.Release, k.Image, dir)
	return nil
}

// kernelPackage is the package that the meta package depends on.
func (s *setup) kernelPackage(meta string) (string, error) {
	if _, err := exec.LookPath("apt-cache"); err != nil {
		return "", fmt.Errorf("the lab's kernel is Debian's package %s, and this machine has no apt to get it", meta)
	}
	out, err := s.run("", "apt-cache", "depends", meta)
	if err != nil {
		return "", err
	}
	pkg := firstDepends(out)
	if pkg == "" {
		return "", fmt.Errorf("apt-cache depends %s names no package (is this Debian on amd64?)", meta)
	}
	return pkg, nil
}

func firstDepends(out string) string {
	for line := range strings.SplitSeq(out, "\n") {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(p, "linux-image-") {
			return p
		}
	}
	return ""
}

// unpack turns the package in tmp into tmp/x.
func (s *setup) unpack(tmp string) (*Kernel, error) {
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return nil, fmt.Errorf("apt-get download left %d packages in %s", len(debs), tmp)
	}
	x := filepath.Join(tmp, "x")
	if _, err := s.run("", "dpkg-deb", "-x", debs[0], x); err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(x, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s holds %d kernels", filepath.Base(debs[0]), len(images))
	}
	k := &Kernel{
		Dir:     x,
		Package: strings.TrimSuffix(filepath.Base(debs[0]), ".deb"),
		Release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
	}
	k.Image = filepath.Join("boot", "vmlinuz-"+k.Release)
	for _, lib := range []string{"lib", "usr/lib"} {
		if m := filepath.Join(lib, "modules", k.Release); isDir(filepath.Join(x, m)) {
			k.Modules = m
		}
	}
	if k.Modules == "" {
		return nil, fmt.Errorf("%s has no modules", k.Package)
	}
	dm, err := depmod()
	if err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(k.Modules, "lib/modules/"+k.Release)
	if _, err := s.run("", dm, "-b", filepath.Join(x, base), k.Release); err != nil {
		return nil, err
	}
	if err := writeVmlinux(filepath.Join(x, "boot", "vmlinux"), images[0]); err == nil {
		k.Image = filepath.Join("boot", "vmlinux")
	} else {
		s.say("booting the compressed image: %v", err)
	}
	b, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		return nil, err
	}
	return k, os.WriteFile(filepath.Join(x, metaName), append(b, '\n'), 0o644)
}

func isDir(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.IsDir()
}

// writeVmlinux writes the ELF kernel that is in a bzImage: QEMU starts it through its PVH note, without the
// decompression, which emulation makes slow.
func writeVmlinux(dst, bzImage string) error {
	b, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	v, err := Vmlinux(b)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(bzImage), err)
	}
	return os.WriteFile(dst, v, 0o644)
}
