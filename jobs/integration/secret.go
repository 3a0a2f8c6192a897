package integration

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// redacted stands where a secret stood.
const redacted = "[redacted]"

// secrets are the names under which credentials travel, without case and punctuation.
// A bare "token" is not among them: to get one may be what a task is for, and pages
// have them too.
var secrets = map[string]bool{
	"authorization": true, "proxyauthorization": true, "cookie": true, "setcookie": true, "password": true, "passwd": true, "passphrase": true,
	"secret": true, "secretkey": true, "clientsecret": true, "sharedsecret": true, "secretaccesskey": true, "accesskey": true, "accesstoken": true, "refreshtoken": true,
	"authtoken": true, "bearertoken": true, "sessiontoken": true, "apikey": true, "xapikey": true, "privatekey": true, "connectionstring": true,
	"credential": true, "credentials": true, "resolvedcredential": true, "resolvedcredentials": true, "resolvedsecret": true,
}

func secretName(name string) bool {
	return secrets[strings.NewReplacer("-", "", "_", "", ".", "", "@", "", " ", "").Replace(strings.ToLower(name))]
}

// withoutSecrets replaces the values of members that are credentials by their names,
// at any depth. An answer without any is returned as it came.
func withoutSecrets(data json.RawMessage) json.RawMessage {
	if len(data) == 0 {
		return data
	}
	var v any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if decoder.Decode(&v) != nil || !redact(v) {
		return data
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil // rather nothing than a secret
	}
	return text
}

// redact reports whether it found something.
func redact(v any) (found bool) {
	switch v := v.(type) {
	case []any:
		for _, each := range v {
			found = redact(each) || found
		}
	case map[string]any:
		for name, value := range v {
			if value != nil && secretName(name) {
				v[name], found = redacted, true
				continue
			}
			found = redact(value) || found
		}
	}
	return found
}

// scheme is a credential of HTTP in a sentence; words that follow are none.
var scheme = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`)

func withoutScheme(text string) string {
	return scheme.ReplaceAllStringFunc(text, func(found string) string {
		word := found[strings.LastIndexAny(found, " \t\r\n")+1:]
		if word == strings.ToLower(word) && !strings.ContainsAny(word, "0123456789.~+/=-_") {
			return found
		}
		return strings.TrimSuffix(found, word) + redacted
	})
}

// leaks are what other credentials look like in a sentence.
var leaks = []struct {
	look *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), redacted},
	{regexp.MustCompile(`://[^/\s@]+@`), "://" + redacted + "@"},
	{regexp.MustCompile(`(?i)\b(password|passwd|secret|api[_-]?key|access[_-]?token)(["']?\s*[=:]\s*["']?)[^\s"',;&]+`), "$1$2" + redacted},
}

// discreet is a failure without credentials in its words.
func discreet(f *jobs.Failure) *jobs.Failure {
	out := *f
	out.Message, out.StackTrace = withoutScheme(f.Message), withoutScheme(f.StackTrace)
	for _, leak := range leaks {
		out.Message = leak.look.ReplaceAllString(out.Message, leak.to)
		out.StackTrace = leak.look.ReplaceAllString(out.StackTrace, leak.to)
	}
	out.Details = withoutSecrets(f.Details)
	return &out
}
