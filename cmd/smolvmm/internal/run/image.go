// Package run finds what an image of the store says about its machine.
package run

import (
	"errors"
	"fmt"
	"strings"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
)

// Image is what a machine needs of an image.
type Image struct {
	Name string // as people call it
	Disk string // path of the root disk's contents, which nobody may write to
	Root string // the kernel's root argument
	// Kernel is the path of the image's own kernel; where it is "" the image is for
	// the kernel of a release, or for any.
	Kernel, Release string
	Memory          uint64 // bytes; 0: not said
	CPUs            int    // 0: not said
	Publish         []string
	Config          spec.Config
}

// Find finds an image by name, digest or the beginning of a digest. Where keys are
// given the image must be signed by one of them.
func Find(dir, ref string, keys ...sign.PublicKey) (img Image, err error) {
	s, err := store.Open(dir)
	if err != nil {
		return img, err
	}
	e, err := s.Resolve(ref)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return img, fmt.Errorf("%w: smolvmm images lists them; a disk image's path begins with / or ./ or ends in .img", err)
	case err != nil:
		return img, err
	case e.Err != nil:
		return img, fmt.Errorf("image %s: %w", ref, e.Err)
	}
	if len(keys) > 0 {
		if _, err := e.Verify(keys); err != nil {
			return img, fmt.Errorf("-verify: %w", err)
		}
	}
	img = Image{
		Name: e.Name(), Disk: e.Disk.Path(), Root: e.Image.Disk.Root, Release: e.Image.Kernel.Release,
		Memory: e.Image.Memory, CPUs: e.Image.CPUs, Publish: e.Image.Publish, Config: e.Image.Config,
	}
	if e.Kernel != nil {
		img.Kernel = e.Kernel.Path()
	}
	return img, nil
}

// Init gives the fields of smolinit's document that the image decides: args
// replace its command.
func (img *Image) Init(args []string) (spec.Init, error) { return img.Config.ToInit(args, nil) }

// Append is what the image adds to the kernel's arguments where the user says no
// other root.
func (img *Image) Append(given string) string {
	if img.Root == "" || strings.Contains(" "+given, " root=") {
		return given
	}
	return strings.TrimSpace("root=" + img.Root + " " + given)
}
