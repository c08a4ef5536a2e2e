// Package kernels keeps the lab's kernels, which are Debian's packages unpacked in a cache folder, and installs what the
// lab needs of the machine.
package kernels

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// Flavours are the kernels there are, by the name of the -kernel flag: the Debian package that names the newest one.
var Flavours = map[string]string{
	"cloud":   "linux-image-cloud-amd64",
	"generic": "linux-image-amd64",
}

// MinQEMU is the oldest major release of QEMU that the lab accepts: 7.2 drops the STI shadow at VMRUN and so loses
// wake-ups of a halted guest.
const MinQEMU = 10

// QEMU is the emulator's name.
const QEMU = "qemu-system-x86_64"

// ErrSetup is wrapped by every error that setup would mend.
var ErrSetup = errors.New("run: go run github.com/smolvmm/smolvmm/bench/lab setup")

// Kernel is one unpacked kernel. Its files are relative to Dir.
type Kernel struct {
	Dir     string `json:"-"`
	Package string // name and version of the Debian package
	Release string // uname -r
	Image   string // vmlinux where it could be extracted, which boots faster; or vmlinuz
	Modules string // the folder with modules.dep
}

// CacheDir is the folder of the lab's kernels.
func CacheDir() (string, error) {
	c, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(c, "smolvmm", "lab"), nil
}

// metaName is written last, so a folder that has it is whole.
const metaName = "kernel.json"

// Find returns the kernel of a flavour from the cache folder.
func Find(cache, flavour string) (*Kernel, error) {
	if _, ok := Flavours[flavour]; !ok {
		return nil, fmt.Errorf("no kernel %q: cloud or generic", flavour)
	}
	dir := filepath.Join(cache, flavour)
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if errors.Is(err, fs.ErrNotExist) {
		arg := ""
		if flavour != "cloud" {
			arg = " -kernel " + flavour
		}
		return nil, fmt.Errorf("the %s kernel is not in %s; %w%s", flavour, dir, ErrSetup, arg)
	}
	if err != nil {
		return nil, err
	}
	k := &Kernel{Dir: dir}
	if err := json.Unmarshal(b, k); err != nil {
		return nil, fmt.Errorf("%s: %w; remove the folder and %w", filepath.Join(dir, metaName), err, ErrSetup)
	}
	return k, nil
}

// ImagePath is the kernel to boot.
func (k *Kernel) ImagePath() string { return filepath.Join(k.Dir, k.Image) }

// ModulePath is the host's path of a module, given as modules.dep has it.
func (k *Kernel) ModulePath(rel string) string { return filepath.Join(k.Dir, k.Modules, rel) }

// CheckQEMU finds the emulator and says its version.
func CheckQEMU() (path, version string, err error) {
	path, err = exec.LookPath(QEMU)
	if err != nil {
		return "", "", fmt.Errorf("%s is not installed; %w", QEMU, ErrSetup)
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", "", fmt.Errorf("%s --version: %w", path, err)
	}
	version, major, err := parseVersion(string(out))
	if err != nil {
		return "", "", fmt.Errorf("%s --version: %w", path, err)
	}
	if major < MinQEMU {
		return "", "", fmt.Errorf("%s is release %s, which loses wake-ups of nested guests; %d or newer is needed: %w",
			path, version, MinQEMU, ErrSetup)
	}
	return path, version, nil
}

var versionRE = regexp.MustCompile(`version ((\d+)\.\d+(?:\.\d+)?)`)

// parseVersion reads "QEMU emulator version 10.0.2 (…)".
func parseVersion(out string) (version string, major int, err error) {
	m := versionRE.FindStringSubmatch(out)
	if m == nil {
		return "", 0, fmt.Errorf("no version in %.60q", out)
	}
	major, err = strconv.Atoi(m[2])
	return m[1], major, err
}
