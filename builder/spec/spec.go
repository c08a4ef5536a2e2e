// Package spec says what an image is: a JSON document beside a disk, which names
// by digest what belongs to the image and how its machine is to be run. It reads
// documents that strangers wrote; it does no I/O.
package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// MediaType is the document's own, as the config of an OCI manifest.
const MediaType = "application/vnd.smolvmm.image.config.v1+json"

// Image describes one image. Its canonical form is what Encode writes; the digest
// of those bytes is the image's identity in a store.
type Image struct {
	Architecture string `json:"architecture"`      // "amd64", Go's GOARCH
	OS           string `json:"os"`                // "netbsd", Go's GOOS
	Created      string `json:"created,omitempty"` // RFC 3339, from SOURCE_DATE_EPOCH; absent where that is not given
	Config       Config `json:"config"`            // what runs inside
	Kernel       Kernel `json:"kernel,omitzero"`   // the zero value leaves it to who runs the image

	Memory  uint64   `json:"memory,omitempty"`  // bytes; 0 is the monitor's default
	CPUs    int      `json:"cpus,omitempty"`    // 0 is the monitor's default
	Publish []string `json:"publish,omitempty"` // as smolvmm's -publish takes them; run's defaults

	Disk Disk   `json:"disk"`
	Tree string `json:"tree,omitempty"` // digest of the root as builder/tree encodes it, so that FROM and COPY --from need not read the disk
}

// Config is Docker's (OCI image-spec, config.md), with the numbers that names
// stand for: a machine's host cannot read the guest's password file at run time.
type Config struct {
	Env          []string          `json:"env,omitempty"` // NAME=VALUE
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	User         string            `json:"user,omitempty"` // as written: name or number, ":" group
	UID          uint32            `json:"uid,omitempty"`  // what User means in the image
	GID          uint32            `json:"gid,omitempty"`
	Groups       []uint32          `json:"groups,omitempty"`
	WorkingDir   string            `json:"working_dir,omitempty"`
	StopSignal   string            `json:"stop_signal,omitempty"`   // SIGTERM and so on, or a number
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", "53/udp"
	Volumes      []string          `json:"volumes,omitempty"`       // absolute paths
	Labels       map[string]string `json:"labels,omitempty"`
	Healthcheck  *Healthcheck      `json:"healthcheck,omitempty"`
}

// Healthcheck is Docker's HEALTHCHECK; durations are nanoseconds.
type Healthcheck struct {
	Test        []string      `json:"test"` // {"NONE"}, {"CMD", program, args…} or {"CMD-SHELL", line}
	Interval    time.Duration `json:"interval,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	StartPeriod time.Duration `json:"start_period,omitempty"`
	Retries     int           `json:"retries,omitempty"`
}

// Kernel is a kernel's file in the store, or the name of a release that who runs
// the image has or fetches; never both.
type Kernel struct {
	Digest  string `json:"digest,omitempty"`
	Size    int64  `json:"size,omitempty"` // bytes, with Digest
	Release string `json:"release,omitempty"`
}

// Layouts of a disk.
const (
	LayoutFFS  = "ffs"  // a bare file system, FFSv2
	LayoutGPT  = "gpt"  // a GPT with a wedge
	LayoutExt2 = "ext2" // a bare ext2 file system, as smolBSD makes them on Linux
	LayoutRaw  = "raw"  // not known to the store
)

// Disk is the root disk.
type Disk struct {
	Digest string `json:"digest"` // of the whole raw image, holes as zeros
	Size   int64  `json:"size"`   // bytes
	Layout string `json:"layout"` // one of the Layout constants
	Root   string `json:"root"`   // the kernel's root argument: "ld0a", "NAME=webroot"
}

// MaxDocument bounds a document, bytes: labels and environments are text that
// people write.
const MaxDocument = 1 << 20

// Parse reads and checks a document. Fields that this version does not know are
// an error: they might say what must not be left out.
func Parse(doc []byte) (Image, error) {
	var img Image
	if len(doc) > MaxDocument {
		return img, fmt.Errorf("image description: %d bytes; at most %d are read", len(doc), MaxDocument)
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(&img); err != nil {
		return Image{}, fmt.Errorf("image description: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Image{}, errors.New("image description: something follows the object")
	}
	if err := img.Validate(); err != nil {
		return Image{}, fmt.Errorf("image description: %w", err)
	}
	return img, nil
}

// Encode checks the image and gives its canonical document: the same image is
// the same bytes.
func (img *Image) Encode() ([]byte, error) {
	if err := img.Validate(); err != nil {
		return nil, fmt.Errorf("image description: %w", err)
	}
	b, err := json.Marshal(img)
	if err != nil {
		return nil, fmt.Errorf("image description: %w", err)
	}
	if len(b) > MaxDocument {
		return nil, fmt.Errorf("image description: %d bytes; at most %d are allowed", len(b), MaxDocument)
	}
	return b, nil
}

// Argv is the command: Docker's rule, by which args replace Cmd and follow
// Entrypoint. It is empty where the image leaves it to its own /etc/smolinit.json.
func (c *Config) Argv(args []string) []string {
	if len(args) == 0 {
		args = c.Cmd
	}
	return append(append([]string(nil), c.Entrypoint...), args...)
}
