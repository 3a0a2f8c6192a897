package jobs

import "net/url"

// checkCallback rejects an address to which no update could ever be posted. The egress guard
// checks the resolved address at each delivery, because DNS names change their addresses.
func (t *Tasks) checkCallback(address string) error {
	if address == "" {
		return nil
	}

	to, err := url.Parse(address)
	switch {
	// Without the parser's error, which quotes the address and so a password in the address.
	case err != nil || to.Host == "" || to.Hostname() == "" || to.Opaque != "":
		return invalid("/callbackUrl", "callbackUrl is not a URL with a host")
	case to.Scheme != "http" && to.Scheme != "https":
		return invalid("/callbackUrl", "callbackUrl must be http or https")
	case to.User != nil:
		return invalid("/callbackUrl", "callbackUrl must not have a user name or password: what is posted is signed instead")
	case t.cfg.CheckCallback == nil:
		return nil
	}

	if err := t.cfg.CheckCallback(address); err != nil {
		return invalid("/callbackUrl", "%v", err)
	}

	return nil
}
