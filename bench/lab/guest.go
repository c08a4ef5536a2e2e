package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/bench/lab/internal/image"
	"github.com/smolvmm/smolvmm/bench/lab/internal/kernels"
	"github.com/smolvmm/smolvmm/bench/lab/internal/wire"
)

// maxWorkDir is the largest working directory put in without being asked for, in bytes.
const maxWorkDir = 64 << 20

// baseModules are loaded in every lab.
var baseModules = []string{"virtio_pci", "virtio_console", "kvm_amd"}

// guestPath is the search path in the guest.
const guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// passEnv are the variables handed on without being asked for: they steer the Go runtime, or name the same folders.
var passEnv = []string{"GODEBUG", "GOTRACEBACK", "GORACE", "GOMEMLIMIT", "XDG_CACHE_HOME", "TERM"}

// initBinary is the program that becomes the init where it is not this one: a test binary is not the lab.
var initBinary string

// outPath is a file or folder to bring back.
type outPath struct{ guest, host string }

// buildGuest gathers the initramfs for a run of args (the program and its arguments) and says what comes back.
func buildGuest(o *options, k *kernels.Kernel, args []string, merge bool, notes io.Writer) (*image.Tree, []outPath, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return nil, nil, err
	}
	root := image.NewTree()
	skeleton(root)
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	root.Dir(home, 0o755)
	if err := workDir(root, cwd, notes); err != nil {
		return nil, nil, err
	}
	spec := wire.Spec{Args: args, Dir: cwd, Merge: merge}
	path := guestPath
	for _, p := range o.with {
		host, err := exec.LookPath(p)
		if err != nil {
			return nil, nil, fmt.Errorf("-with %s: %w", p, err)
		}
		guest, err := addProgram(root, host)
		if err != nil {
			return nil, nil, fmt.Errorf("-with %s: %w", p, err)
		}
		if dir := filepath.Dir(guest); !slices.Contains(filepath.SplitList(path), dir) {
			path += ":" + dir
		}
	}
	for _, f := range o.files {
		host, guest, err := hostGuest(f, cwd)
		if err == nil {
			err = root.Path(host, guest)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("-file %s: %w", f, err)
		}
	}
	host, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return nil, nil, err
	}
	if spec.Path, err = addProgram(root, host); err != nil {
		return nil, nil, err
	}
	t := goTestPaths(args[1:], cwd)
	for _, d := range t.dirs {
		root.Dir(d, 0o755)
	}
	outs := t.outs
	for _, f := range o.out {
		guest, host, ok := strings.Cut(f, ":")
		guest = absolute(guest, cwd)
		if !ok {
			host = guest
		}
		outs = append(outs, outPath{guest, absolute(host, cwd)})
	}
	for _, p := range outs {
		root.Dir(filepath.Dir(p.guest), 0o755)
		spec.Out = append(spec.Out, p.guest)
	}
	if spec.Env, err = guestEnv(o.env, path, home, cwd); err != nil {
		return nil, nil, err
	}

	initramfs := image.NewTree()
	initramfs.CharDev("/dev/console", 0o600, 5, 1)
	initramfs.CharDev("/dev/null", 0o666, 1, 3)
	self := initBinary
	if self == "" {
		if self, err = os.Executable(); err != nil {
			return nil, nil, err
		}
	}
	if err := addInit(initramfs, self); err != nil {
		return nil, nil, err
	}
	if spec.Modules, err = addModules(initramfs, k, o); err != nil {
		return nil, nil, err
	}
	initramfs.Under(wire.GuestRoot, root)
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, err
	}
	initramfs.Bytes(wire.SpecPath, b, 0o644)
	return initramfs, outs, nil
}

// skeleton adds what a program expects of a root, beside what the init mounts.
func skeleton(t *image.Tree) {
	usrLinks(t)
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/mnt", "/var/run", "/etc"} {
		t.Dir(d, 0o755)
	}
	t.Dir("/tmp", fs.ModeSticky|0o777)
	t.Dir("/var/tmp", fs.ModeSticky|0o777)
	t.Bytes("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"), 0o644)
	t.Bytes("/etc/group", []byte("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"), 0o644)
	t.Bytes("/etc/hosts", []byte("127.0.0.1 localhost lab\n::1 localhost\n"), 0o644)
	t.Bytes("/etc/nsswitch.conf", []byte("passwd: files\ngroup: files\nhosts: files dns\n"), 0o644)
}

func usrLinks(t *image.Tree) {
	for _, l := range image.UsrLinks {
		t.Dir("/usr/"+l, 0o755)
		t.Symlink("/"+l, "usr/"+l)
	}
}

// addInit puts the lab's own binary in as /init. It is static unless cgo was on when it was built.
func addInit(t *image.Tree, self string) error {
	usrLinks(t)
	return t.Program(self, "/init")
}

// addProgram puts a program in at its own path, with what it needs to run, and returns the path in the guest.
func addProgram(t *image.Tree, host string) (string, error) {
	host, err := filepath.Abs(host)
	if err != nil {
		return "", err
	}
	guest := image.MergedUsr(host)
	if err := t.Program(host, guest); err != nil {
		return "", err
	}
	if strings.HasPrefix(filepath.Base(host), "qemu-system-") {
		n, err := t.QEMUData(host)
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", fmt.Errorf("no firmware of %s is installed; %w", host, kernels.ErrSetup)
		}
	}
	return guest, nil
}

func addModules(t *image.Tree, k *kernels.Kernel, o *options) ([]string, error) {
	dep, err := os.ReadFile(k.ModulePath("modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(k.ModulePath("modules.builtin"))
	if err != nil {
		return nil, err
	}
	deps, err := image.ParseModules(string(dep), string(builtin))
	if err != nil {
		return nil, err
	}
	names := slices.Clone(baseModules)
	if len(o.drives) > 0 {
		names = append(names, "virtio_blk")
	}
	for _, m := range o.modules {
		names = append(names, strings.FieldsFunc(m, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	order, err := deps.Order(names)
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", err, k.Release)
	}
	var paths []string
	for _, rel := range order {
		guest := "/lab/modules/" + filepath.Base(rel)
		if err := t.File(k.ModulePath(rel), guest); err != nil {
			return nil, err
		}
		paths = append(paths, guest)
	}
	return paths, nil
}

// workDir makes the caller's working directory exist in the guest, with its contents where it is part of a Go module
// and small: go test runs a test in its package's folder.
func workDir(t *image.Tree, cwd string, notes io.Writer) error {
	t.Dir(cwd, 0o755)
	mod := moduleRoot(cwd)
	if mod == "" {
		return nil
	}
	if err := t.File(filepath.Join(mod, "go.mod"), filepath.Join(mod, "go.mod")); err != nil {
		return err
	}
	n, err := image.FolderSize(cwd, maxWorkDir)
	if err != nil {
		return err
	}
	if n > maxWorkDir {
		fmt.Fprintf(notes, "lab: %s has over %d MiB and is empty in the lab: put in what is needed with -file\n", cwd, maxWorkDir>>20)
		return nil
	}
	return t.Path(cwd, cwd)
}

// moduleRoot is the folder at or above dir that has a go.mod, or "".
func moduleRoot(dir string) string {
	for {
		if fi, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil && fi.Mode().IsRegular() {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

// hostGuest reads host[:guest]. A relative guest path is below the working directory, as the program sees it.
func hostGuest(arg, cwd string) (host, guest string, err error) {
	host, guest, ok := strings.Cut(arg, ":")
	if host == "" || (ok && guest == "") {
		return "", "", errors.New("want host or host:guest")
	}
	host = absolute(host, cwd)
	if !ok {
		guest = host
	}
	return host, image.MergedUsr(absolute(guest, cwd)), nil
}

func absolute(p, cwd string) string {
	if !filepath.IsAbs(p) {
		p = filepath.Join(cwd, p)
	}
	return filepath.Clean(p)
}

// guestEnv is the program's whole environment. Later entries of extra win.
func guestEnv(extra []string, path, home, cwd string) ([]string, error) {
	env := []string{
		"SMOLVMM_LAB=1", "PATH=" + path, "HOME=" + home, "TMPDIR=/tmp", "PWD=" + cwd, "USER=root", "LANG=C.UTF-8",
	}
	for _, k := range passEnv {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	for _, e := range extra {
		k, _, ok := strings.Cut(e, "=")
		if k == "" {
			return nil, fmt.Errorf("-env %q: want K=V or K", e)
		}
		if !ok {
			v, set := os.LookupEnv(k)
			if !set {
				continue
			}
			e = k + "=" + v
		}
		env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, k+"=") })
		env = append(env, e)
	}
	return env, nil
}
