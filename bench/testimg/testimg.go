// Package testimg makes bootable root disks for tests: an ext2 file system that
// NetBSD mounts as root, with smolinit as /sbin/init and static programs beside
// it. It needs mke2fs and debugfs (e2fsprogs) and the Go tool, and no privilege.
package testimg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Module is this project's import path, for Program.
const Module = "github.com/smolvmm/smolvmm"

// File is a file of the image, owned by root.
type File struct {
	Path string // absolute, of plain characters (letters, digits, "/", ".", "_", "-")
	Data []byte
	Mode fs.FileMode // permission bits; 0 is 0644
}

// Spec is an image.
type Spec struct {
	Files []File
	Dirs  []string // directories beyond those that files need
	Size  int64    // bytes; 0 is DefaultSize
	// Block is the block size in bytes: 1024 or 4096; 0 is 1024.
	Block int
	// NoNodes leaves out /dev's nodes. The kernel and the Go runtime in init
	// need /dev/console and /dev/null, so such an image boots no Go init.
	NoNodes bool
}

// DefaultSize is an image's size in bytes: room for two Go programs and the
// test file.
const DefaultSize = 32 << 20

// Programs are built once a process and kept in Dir; paths inside an image.
const (
	InitPath  = "/sbin/init"
	CheckPath = "/bin/guestcheck"
)

// Default is an image with smolinit and guestcheck, and the directories that
// smolinit mounts on. guestcheck is what runs when the host gives no command.
func Default(ctx context.Context) (Spec, error) {
	smolinit, err := Program(ctx, Module+"/cmd/smolinit")
	if err != nil {
		return Spec{}, err
	}
	check, err := Program(ctx, Module+"/bench/testimg/guestcheck")
	if err != nil {
		return Spec{}, err
	}
	return Spec{
		Files: []File{
			{Path: InitPath, Data: smolinit, Mode: 0o755},
			{Path: CheckPath, Data: check, Mode: 0o755},
			{Path: "/etc/smolinit.json", Data: []byte(`{"argv": ["guestcheck"], "hostname": "testimg"}` + "\n")},
		},
		Dirs: []string{"/tmp", "/var/run", "/run", "/proc", "/kern", "/dev/pts", "/mnt"},
	}, nil
}

// Program builds a static NetBSD/amd64 program of this module.
func Program(ctx context.Context, pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "testimg-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "GOOS=netbsd", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building %s for netbsd/amd64: %w\n%s", pkg, err, said)
	}
	return os.ReadFile(out)
}

// Build writes the image to file, which is made anew. The same Spec gives the
// same bytes with the same e2fsprogs.
func Build(ctx context.Context, file string, s Spec) (err error) {
	mke2fs, err := tool("mke2fs")
	if err != nil {
		return err
	}
	debugfs, err := tool("debugfs")
	if err != nil {
		return err
	}
	stage, err := os.MkdirTemp("", "testimg-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	paths, err := fill(stage, s)
	if err != nil {
		return err
	}

	if s.Size == 0 {
		s.Size = DefaultSize
	}
	if s.Block == 0 {
		s.Block = 1024
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(out.Truncate(s.Size), out.Close()); err != nil {
		return err
	}
	// What NetBSD's ext2fs can allocate in: no extents, no 64bit, no
	// checksums, no journal, inodes of 128 bytes.
	if err := run(ctx, "", mke2fs, "-q", "-F", "-t", "ext2", "-O", "none,filetype,sparse_super", "-I", "128",
		"-b", fmt.Sprint(s.Block), "-m", "0", "-L", "testimg", "-U", "5a0f1e9c-7d5e-4b59-9d7c-0d6e1c7b2a11",
		"-E", "hash_seed=5a0f1e9c-7d5e-4b59-9d7c-0d6e1c7b2a12,root_owner=0:0", "-d", stage, file); err != nil {
		return err
	}
	// Owners and nodes are set in the image itself, so that no privilege is
	// needed and the result is the same with and without it.
	var script strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&script, "set_inode_field %[1]s uid 0\nset_inode_field %[1]s gid 0\nset_inode_field %[1]s ctime @%[2]d\nset_inode_field %[1]s atime @%[2]d\n", p, fakeTime)
	}
	if !s.NoNodes {
		script.WriteString("cd /dev\n")
		for _, n := range devNodes {
			fmt.Fprintf(&script, "mknod %s %c %d %d\nset_inode_field %s mode 0%o\n", n.name, n.kind, n.major, n.minor, n.name, n.mode)
		}
	}
	commands := filepath.Join(stage, "debugfs-commands")
	if err := os.WriteFile(commands, []byte(script.String()), 0o600); err != nil {
		return err
	}
	return run(ctx, "", debugfs, "-w", "-f", commands, file)
}

// devNode is a node of the image. ext2 keeps a small device number as
// major<<8|minor, which NetBSD reads the same way.
type devNode struct {
	name         string
	kind         byte
	major, minor int
	mode         int // with the file type, as in an inode
}

// devNodes are what must be there before init can do anything: the rest is
// smolinit's to make. (sys/arch/amd64/conf/majors.amd64)
var devNodes = []devNode{
	{"console", 'c', 0, 0, 0o20600},
	{"null", 'c', 2, 2, 0o20666},
	{"ld0a", 'b', 19, 0, 0o60640},
}

// fill makes the tree to copy, and lists its paths.
func fill(stage string, s Spec) ([]string, error) {
	var dirs []string
	addDir := func(p string) {
		for ; p != "/"; p = path.Dir(p) {
			if !slices.Contains(dirs, p) {
				dirs = append(dirs, p)
			}
		}
	}
	for _, d := range append([]string{"/dev"}, s.Dirs...) {
		if err := checkPath(d); err != nil {
			return nil, err
		}
		addDir(d)
	}
	for _, f := range s.Files {
		if err := checkPath(f.Path); err != nil {
			return nil, err
		}
		addDir(path.Dir(f.Path))
	}
	slices.Sort(dirs)
	var paths []string
	for _, d := range dirs {
		if err := os.Mkdir(filepath.Join(stage, d), 0o755); err != nil {
			return nil, err
		}
		mode := fs.FileMode(0o755)
		if d == "/tmp" {
			mode = 0o777 | fs.ModeSticky
		}
		if err := os.Chmod(filepath.Join(stage, d), mode); err != nil {
			return nil, err
		}
		paths = append(paths, d)
	}
	for _, f := range s.Files {
		p := filepath.Join(stage, f.Path)
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		if err := os.WriteFile(p, f.Data, mode); err != nil {
			return nil, err
		}
		if err := os.Chmod(p, mode); err != nil {
			return nil, err
		}
		paths = append(paths, f.Path)
	}
	epoch := time.Unix(fakeTime, 0)
	for _, p := range slices.Backward(append([]string{"/"}, paths...)) {
		if err := os.Chtimes(filepath.Join(stage, p), epoch, epoch); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// checkPath holds paths to what needs no quoting in a debugfs script.
func checkPath(p string) error {
	plain := strings.HasPrefix(p, "/") && path.Clean(p) == p && p != "/"
	for _, r := range p {
		plain = plain && (r == '/' || r == '.' || r == '_' || r == '-' ||
			r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
	}
	if !plain {
		return fmt.Errorf("image path %q: want an absolute path of plain characters", p)
	}
	return nil
}

// fakeTime is every time stamp of an image, in seconds since 1970: 2026-01-01.
const fakeTime = 1767225600

// tool finds a program that may be in a directory for administrators.
func tool(name string) (string, error) {
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s is not here: install the package e2fsprogs", name)
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", fakeTime), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", fakeTime), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err == nil && path.Base(name) == "debugfs" && complaint(string(out)) {
		err = errors.New("a command failed")
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", path.Base(name), err, out)
	}
	return nil
}

// complaint finds an error in what debugfs prints: it exits 0 all the same. It
// repeats its commands behind "debugfs: " and names itself on the first line.
func complaint(out string) bool {
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if !strings.HasPrefix(line, "debugfs") && !strings.HasPrefix(line, "Allocated inode:") && line != "" {
			return true
		}
	}
	return false
}
