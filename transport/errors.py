"""Every error of this folder, as one tree.

    TransportError
    ├── WireError            bytes that are not strict CBOR, or not the fields we expect
    ├── IdentityError        key files and peer IDs
    ├── EnvelopeError        not a COSE_Sign1 envelope of ours
    │   └── BadSignature     one that its key did not sign
    ├── ManifestError        a manifest that contradicts itself
    ├── AddressError         text that is not HOST:PORT
    ├── LinkError            no connection to a peer
    │   ├── DialError        nobody answered at an address
    │   │   └── NoRoute      this machine has no way to an address
    │   ├── ListenError      an address of ours cannot be listened on
    │   ├── HandshakeError   connected, but it did not prove who it is
    │   └── LinkClosed       was connected, is no more
    ├── StunError            no usable answer from a STUN server
    ├── ShelfError           a relay's folder can't be used
    ├── MappingError         a router that maps no port for us
    │   └── MappingRefused   it could, and doesn't want to
    ├── CallError            a call to punch a hole that is not heeded
    ├── SealedError          a sealed model or manifest that does not open
    ├── MembershipError      a certificate, notice or key of a private swarm that doesn't hold
    │   ├── InviteError      an invite that nobody can join with
    │   └── UnknownGeneration  a key of the swarm that this member doesn't have
    └── ProtocolError        a message that is well-formed and not due
        └── TransferError    model bytes, or a request for some, that are not due

A class's docstring is the sentence that a person reads; str() adds the specifics.
"""


class TransportError(Exception):
    """Something between the peers went wrong."""

    def __str__(self) -> str:
        sentence = (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")
        detail = super().__str__()
        return f"{sentence}: {detail}" if detail else f"{sentence}."


class WireError(TransportError):
    """These bytes are not a message that p2pnode understands."""


class IdentityError(TransportError):
    """The identity cannot be used."""


class EnvelopeError(TransportError):
    """This is not a signed p2pnode envelope."""


class BadSignature(EnvelopeError):
    """The signature does not match."""


class ManifestError(TransportError):
    """The manifest does not describe a model that can be fetched."""


class AddressError(TransportError):
    """This is not an address."""


class LinkError(TransportError):
    """No connection to the other side."""


class DialError(LinkError):
    """Nobody answers at this address."""


class NoRoute(DialError):
    """This machine has no way to this address."""


class ListenError(LinkError):
    """Cannot listen on this address."""


class HandshakeError(LinkError):
    """The other side did not prove who it is."""


class LinkClosed(LinkError):
    """The connection is closed."""


class StunError(TransportError):
    """The STUN server gave no usable answer."""


class MappingError(TransportError):
    """The router maps no port for us."""


class MappingRefused(MappingError):
    """The router refuses to map a port for us."""


class ShelfError(TransportError):
    """The folder for the models that a relay holds can't be used."""


class CallError(TransportError):
    """This call is not heeded."""


class SealedError(TransportError):
    """This sealed model can't be opened."""


class MembershipError(TransportError):
    """This does not hold in the private swarm."""


class InviteError(MembershipError):
    """The invite can't be used."""


class UnknownGeneration(MembershipError):
    """This member does not have that key of the swarm."""


class ProtocolError(TransportError):
    """The peer does not keep to the protocol."""


class TransferError(ProtocolError):
    """The peer does not keep to what was asked for."""
