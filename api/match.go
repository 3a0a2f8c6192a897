package api

import (
	"net/http"
	"strconv"
	"strings"
)

// ifMatch is the condition of a write: optional everywhere, obeyed where it is sent.
type ifMatch struct {
	// version that the thing must be at; 0: whichever.
	version int32
	// exists: it must be there at all (If-Match: *).
	exists bool
}

// parseIfMatch reads If-Match. One entity tag is enough for us: a list of versions
// has no sensible meaning for a counter.
func parseIfMatch(header string) (ifMatch, error) {
	switch header {
	case "":
		return ifMatch{}, nil
	case "*":
		return ifMatch{exists: true}, nil
	}
	text, ok := strings.CutPrefix(header, `"`)
	text, ok2 := strings.CutSuffix(text, `"`)
	version, err := strconv.ParseInt(text, 10, 32)
	if !ok || !ok2 || err != nil || version < 1 || text[0] == '+' || text[0] == '0' {
		return ifMatch{}, flawed("header.If-Match", `expected one entity tag as an ETag gave it, such as "3", or *`)
	}
	return ifMatch{version: int32(version), exists: true}, nil
}

// flawed is a request with one place that is not as it must be.
func flawed(location, message string) *Problem {
	p := problem(http.StatusUnprocessableEntity, codeValidation, "the request is not valid")
	p.flaw(location, message)
	return p
}
