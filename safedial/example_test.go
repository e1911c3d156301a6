package safedial_test

import (
	"errors"
	"fmt"

	"github.com/sallyport/sallyport/safedial"
)

func Example() {
	guard := &safedial.Guard{Allow: []string{"auth.internal:443"}}
	_, err := guard.Client().Get("http://169.254.169.254/latest/meta-data/")
	var denied *safedial.DeniedError
	if errors.As(err, &denied) {
		fmt.Println(denied)
	}
	// Output: refused to dial "169.254.169.254": metadata-aws: instance metadata: credentials and user data; nearly every cloud has it at this address (AWS docs, EC2: Access instance metadata); in 169.254.0.0/16, Link Local (RFC 3927)
}
