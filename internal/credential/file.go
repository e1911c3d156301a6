package credential

import (
	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/oauth"
)

// content is what is in a file with one secret.
type content struct {
	secret string
	scrub  *leak.Scrubber
}

// secretFile returns what reads a file with one secret, and reads it again when it has changed. One that is gone, or that others
// can read, has no secret, whatever it had before.
func secretFile(path string) func() (*content, error) {
	return oauth.Kept(path, func(data []byte) (*content, error) {
		secret, err := oauth.Secret(data)
		if err != nil {
			return nil, err
		}
		scrub, err := leak.NewScrubber(secret)
		if err != nil {
			return nil, err
		}
		return &content{secret, scrub}, nil
	})
}
