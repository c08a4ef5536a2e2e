package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

const (
	partName = packed + ".part"
	// validatorName holds the URL and the validator of the part, a line each:
	// what If-Range needs to go on with it.
	validatorName = packed + ".part.of"

	// maxIdleTries bounds requests in a row that bring nothing new, maxTries
	// all of them.
	maxIdleTries = 2
	maxTries     = 50
)

// errCut says that a transfer ended early and can go on.
type errCut struct{ err error }

func (e errCut) Error() string { return e.err.Error() }
func (e errCut) Unwrap() error { return e.err }

// download fills the part file, going on where an earlier transfer was cut as
// long as the mirror says that the file is still the same (RFC 9110 §13.1.5).
func (f *fetcher) download(ctx context.Context) error {
	part, err := os.OpenFile(filepath.Join(f.dir, partName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return f.cacheError(err)
	}
	defer part.Close()
	idle := 0
	for try := 0; ; try++ {
		before, err := part.Seek(0, io.SeekEnd)
		if err != nil {
			return f.cacheError(err)
		}
		err = f.transfer(ctx, part, before)
		var cut errCut
		if !errors.As(err, &cut) {
			return err
		}
		after, serr := part.Seek(0, io.SeekEnd)
		if serr != nil {
			return f.cacheError(serr)
		}
		if idle++; after > before {
			idle = 0
		}
		if idle >= maxIdleTries || try+1 >= maxTries || ctx.Err() != nil {
			return f.netError(packed, cut.err)
		}
	}
}

// transfer is one request. have bytes of the file are in part.
func (f *fetcher) transfer(ctx context.Context, part *os.File, have int64) error {
	header := http.Header{}
	if v := f.validator(); have > 0 && v != "" {
		header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		header.Set("If-Range", v)
	}
	resp, err := f.get(ctx, packed, header)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && have > 0 && e.Kind == ErrNetwork {
			return errCut{err}
		}
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var first, last, total int64
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total); n < 2 || first != have || header.Get("Range") == "" {
			return fail(ErrMirror, nil, "%s%s: the mirror sends another part than was asked for (%.80q)", f.base, packed, resp.Header.Get("Content-Range"))
		}
	case http.StatusOK: // the whole file: it changed, or ranges are not served
		if err := part.Truncate(0); err != nil {
			return f.cacheError(err)
		}
		have = 0
		if err := f.setValidator(resp.Header); err != nil {
			return err
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// What is here may be the whole file already; its digest tells.
		return nil
	default:
		return f.status(resp, packed)
	}
	total := int64(-1)
	if resp.ContentLength >= 0 {
		total = have + resp.ContentLength
	}
	if total > maxPacked {
		return f.tooLong()
	}
	return f.copyBody(part, resp.Body, have, total)
}

func (f *fetcher) tooLong() error {
	f.dropPart()
	return fail(ErrMirror, nil, "%s%s: longer than %d MiB: not a kernel", f.base, packed, maxPacked>>20)
}

func (f *fetcher) copyBody(part *os.File, r io.Reader, have, total int64) error {
	buf := make([]byte, 64<<10)
	for {
		if f.Progress != nil {
			f.Progress(have, total)
		}
		n, err := r.Read(buf)
		if have+int64(n) > maxPacked {
			return f.tooLong()
		}
		if _, werr := part.WriteAt(buf[:n], have); werr != nil {
			return f.cacheError(werr)
		}
		have += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			if f.Progress != nil {
				f.Progress(have, total)
			}
			return nil
		case err != nil:
			return errCut{err}
		}
	}
}

// validator is what the mirror gave to tell whether the file is the one the
// part was cut from, or "".
func (f *fetcher) validator() string {
	b, err := os.ReadFile(filepath.Join(f.dir, validatorName))
	if err != nil || len(b) > 4096 {
		return ""
	}
	of, v, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if of != f.base+packed || strings.ContainsAny(v, "\r\n") {
		return ""
	}
	return v
}

// setValidator notes a strong ETag, or else the date (RFC 9110 §13.1.5 wants
// no weak ones in If-Range).
func (f *fetcher) setValidator(h http.Header) error {
	v := h.Get("ETag")
	if !strings.HasPrefix(v, `"`) {
		v = h.Get("Last-Modified")
	}
	path := filepath.Join(f.dir, validatorName)
	if err := os.WriteFile(path, []byte(f.base+packed+"\n"+v+"\n"), 0o644); err != nil {
		return f.cacheError(err)
	}
	return nil
}

func (f *fetcher) dropPart() {
	os.Remove(filepath.Join(f.dir, partName))
	os.Remove(filepath.Join(f.dir, validatorName))
}
