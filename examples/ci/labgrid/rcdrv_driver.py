"""labgrid: an endpoint as a resource, and rcdrv as its driver."""

# mypy: ignore-errors
# labgrid has no types, and is not installed where rcdrv is developed.

import attr
from labgrid.driver import Driver
from labgrid.factory import target_factory
from labgrid.resource import Resource
from labgrid.step import step

import rcdrv


@target_factory.reg_resource
@attr.s(eq=False)
class PCIeEndpoint(Resource):
    """An endpoint, by the address that ``rcdrv --device`` takes."""

    address = attr.ib(validator=attr.validators.instance_of(str))


@target_factory.reg_driver
@attr.s(eq=False)
class RcdrvDriver(Driver):
    """Holds the endpoint open while it is active: deactivate it to reboot the board."""

    bindings = {"resource": PCIeEndpoint}  # noqa: RUF012 - labgrid's way

    def on_activate(self):
        self.endpoint = rcdrv.open(self.resource.address)

    def on_deactivate(self):
        self.endpoint.close()

    @Driver.check_active
    @step(args=["count"])
    def ring(self, count=1):
        """Ring the doorbell; raise where it does not answer."""
        return self.endpoint.ring(count).check()

    @Driver.check_active
    @step(args=["names"], result=True)
    def test(self, *names):
        """Run cases of the kselftest; return {name: verdict}."""
        results = self.endpoint.test(*names).run.results
        return {str(one.name): one.verdict.value for one in results}
